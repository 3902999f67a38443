#!/bin/bash
# Trains on three ranks, of which one dies, and goes on with what is left: a plain loop around mpirun.
#
#   examples/losing_a_rank/run.sh [FOLDER]
#
# FOLDER keeps the checkpoint (default: a temporary one). MPIRUN and PYTHON name other programs; MPIRUN_FLAGS adds flags.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
if [ "$(id -u)" = 0 ]; then # in a container, say: Open MPI wants to be told twice that this is meant
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
ranks=3
accident=(--lose 1 --at 50)

# Without --enable-recovery, mpirun ends all processes when one dies; with it, the others live to see the error.
# shellcheck disable=SC2086 # MPIRUN_FLAGS is a list
until ${MPIRUN:-mpirun} --enable-recovery --oversubscribe ${MPIRUN_FLAGS:-} -n "$ranks" \
    "${PYTHON:-python}" "$here/train.py" --checkpoint "$folder/checkpoint.pt" "${accident[@]}"; do
    ranks=$((ranks - 1))
    if [ "$ranks" -eq 0 ]; then
        echo "run.sh: no rank is left" >&2
        exit 1
    fi
    echo "run.sh: a rank was lost: going on from $folder/checkpoint.pt with $ranks"
    accident=()
done
