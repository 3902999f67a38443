#!/bin/bash
# Fetches Slurm's daemons and commands for tests that start a cluster of their own, where the system has none: Debian's
# packages, unpacked in FOLDER/root. Nothing is installed or started, and root is not needed.
#
#   scripts/find_slurm.sh FOLDER
set -euo pipefail

folder=${1:?usage: find_slurm.sh FOLDER}
scripts=$(dirname "$0")
PATH=$PATH:/usr/sbin

missing=
for program in munged slurmctld slurmd slurmstepd srun sbatch; do
    command -v "$program" >/dev/null || missing=$program
done
[ -n "$missing" ] || exit 0

# The programs, and those of their libraries that machines without Slurm often lack.
packages=(munge libmunge2 slurmctld slurmd slurm-client slurm-wlm-basic-plugins libhwloc15 libnuma1)
for package in "${packages[@]}"; do
    "$scripts/debian_package.sh" "$package" "$folder/root"
done

libraries=$(find "$folder/root/usr/lib" -name libslurmfull.so -printf '%h:' -o -name libmunge.so.2 -printf '%h:')
for program in munged slurmctld-wlm slurmd-wlm; do
    LD_LIBRARY_PATH=$libraries "$folder/root/usr/sbin/$program" -V >/dev/null || {
        echo "find_slurm.sh: Debian's $program does not run here (the line above says why)" >&2
        exit 1
    }
done
