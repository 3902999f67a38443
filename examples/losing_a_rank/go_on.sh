#!/bin/bash
# Starts four ranks on this machine, of which two die, at other times; the others go on without them.
#
#   examples/losing_a_rank/go_on.sh
#
# Each process is started by itself: mpirun and torchrun would end all ranks with the first one. PYTHON names another program.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
export WORLD_SIZE=4 MASTER_ADDR=127.0.0.1 MASTER_PORT=${MASTER_PORT:-29541}
ranks=()
for rank in 0 1 2 3; do
    RANK=$rank "${PYTHON:-python}" "$here/go_on.py" --lose 0 30 --lose 2 70 &
    ranks+=($!)
done
gone=0
for rank in "${ranks[@]}"; do
    wait "$rank" || gone=$((gone + 1))
done
[ "$gone" -eq 2 ] || { echo "go_on.sh: $gone ranks ended with an error, not 2" >&2 && exit 1; }
