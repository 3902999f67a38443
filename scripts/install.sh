#!/bin/bash
# Installs a file of requirements into a virtual environment; one at a time for each environment.
#
#   scripts/install.sh FOLDER FILE
#
# PyPI's torch for Linux is a CUDA build of several GB with what it depends on. Where PyTorch's own index of CPU builds
# can be reached it is asked as well, and pip prefers what it finds there. TORCH_INDEX names another index, or, empty,
# none: `make run TORCH_INDEX=` takes what PyPI has.
set -euo pipefail

folder=${1:?usage: install.sh FOLDER FILE} file=${2:?usage: install.sh FOLDER FILE}
index=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
python=$folder/bin/python

reachable() {
    "$python" - "$1" <<'END' 2>/dev/null
import sys, urllib.request
urllib.request.urlopen(sys.argv[1].rstrip("/") + "/torch/", timeout=5).close()
END
}

extra=()
if grep -q '^torch\b' "$file" && [ -n "$index" ] && reachable "$index"; then
    extra=(--extra-index-url "$index")
fi
takes=
! grep -qE '^(torch|ray)\b' "$file" || takes=' (takes minutes)'
echo "  pip   ${file#"$PWD/"}: $(grep -oE '^[A-Za-z0-9_-]+' "$file" | uniq | paste -sd' ')$takes"
exec 9>"$folder/.lock"
flock -n 9 || {
    echo "  pip   waits for another installation into $folder"
    flock 9
}
"$python" -m pip install --quiet --disable-pip-version-check "${extra[@]}" -r "$file" </dev/null || {
    echo "install.sh: $file could not be installed into $folder: is this machine online? (pip's lines above say why)" >&2
    exit 1
}
