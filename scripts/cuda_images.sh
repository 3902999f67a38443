#!/bin/bash
# Makes the C file with the compiled CUDA kernels, or, where there is no NVRTC, one that has none.
# Kernels that NVRTC refuses are an error whatever the setting.
#
#   scripts/cuda_images.sh SETTING OUTPUT.c CACHE VENV MAKE...
#
# SETTING: 0 none wanted, 1 needed, auto: go on without. MAKE...: a make that installs requirements/cuda.txt into VENV.
set -euo pipefail

setting=${1:?} output=${2:?} cache=${3:?} venv=${4:?}
shift 4

without() {
    mkdir -p "$(dirname "$output")"
    cat >"$output" <<'C'
/* Made by scripts/cuda_images.sh: this build has no CUDA kernels. */
#include "device/cuda/images.h"

const cuda_image_t cuda_images[1];
const size_t cuda_image_count = 0;
C
}

compile() {
    PIP_RETRIES=1 PIP_DEFAULT_TIMEOUT=20 "$@" -s "$venv/.installed-cuda" && "$venv/bin/python" scripts/cuda_images.py "$output" --cache "$cache"
}

# No result of an earlier run, should this one end half way.
rm -f "$output"
if [ "$setting" = 0 ]; then
    without
    exit
fi
download=
[ -n "${NVRTC-}" ] || [ -e "$venv/.installed-cuda" ] || download=', after a download of 90 MB'
echo "  nvrtc the kernels for GPUs: up to a minute$download (CUDA=0 leaves them out)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
compile "$@" >"$log" 2>&1 || status=$?
if [ $status = 0 ]; then
    cat "$log"
elif [ $status = 3 ]; then # of cuda_images.py: the sources are wrong
    cat "$log" >&2
    exit 1
elif [ "$setting" = 1 ]; then
    cat "$log" >&2
    echo "cuda_images.sh: the CUDA kernels cannot be compiled, and CUDA=1 asks for them" >&2
    exit 1
else
    grep -m 1 -E '^[a-z_]+\.(sh|py): ' "$log" || true # the first of our own says why
    echo "  note  NVRTC is not at hand: this build is without GPU (CUDA=1 shows why, CUDA=0 is quiet)"
    without
fi
