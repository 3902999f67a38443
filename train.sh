#!/bin/bash
# Trains one of the published workloads, as their authors' scripts do:
#
#   dnn=resnet20 nworkers=4 ./train.sh
#
# Variables, with what they are when they are not given:
#   dnn          resnet20; or vgg16, alexnet, resnet50, lstm, lstman4
#   nworkers     4: processes
#   hostfile     none: all of them on this machine; else Open MPI's list of hosts
#   density      0.001
#   compressor   gtopk; or gtopk-split, gtopk-tree, topk, auto, and dense or none
#   batch_size, lr, max_epochs
#                the workload's published ones
#   nstepsupdate 1, nothing else
#   data_dir     where the data lies; examples/README.md says what is taken without it
#   launcher     mpirun; or torchrun
# Anything else that the example takes stands behind: ./train.sh --steps 100 --plot run.png
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

dnn=${dnn:-resnet20} nworkers=${nworkers:-4} density=${density:-0.001} compressor=${compressor:-gtopk}
case $dnn in
resnet20 | vgg16) script=cifar_$dnn ;;
alexnet | resnet50) script=imagenet_$dnn ;;
lstm) script=ptb_lstm ;;
lstman4) script=an4_deepspeech ;;
*)
    echo "train.sh: dnn=$dnn is none of resnet20, vgg16, alexnet, resnet50, lstm, lstman4" >&2
    exit 2
    ;;
esac
[ "$compressor" != none ] || compressor=dense
if [ "${nstepsupdate:-1}" != 1 ]; then
    echo "train.sh: nstepsupdate=$nstepsupdate: only 1 is there; a larger batch_size comes to the same" >&2
    exit 2
fi
if [ "${launcher:-mpirun}" = torchrun ] && [ -n "${hostfile:-}" ]; then
    echo "train.sh: hostfile=$hostfile is for mpirun; with torchrun start the script on each host: examples/README.md" >&2
    exit 2
fi

options=(--algorithm "$compressor" --density "$density")
[ -z "${batch_size:-}" ] || options+=(--batch-size "$batch_size")
[ -z "${lr:-}" ] || options+=(--lr "$lr")
[ -z "${max_epochs:-}" ] || options+=(--epochs "$max_epochs")
[ -z "${data_dir:-}" ] || options+=(--data "$data_dir")

# PYTHON names an interpreter that has everything; otherwise make sees to it.
if [ -z "${PYTHON:-}" ]; then
    make -s -C "$here" workloads
    PYTHON=$here/.venv/bin/python
fi
command=("$PYTHON" "$here/examples/$script.py" "${options[@]}" "$@")
if [ "${launcher:-mpirun}" = torchrun ]; then
    exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$nworkers" "${command[@]:1}"
fi
PATH=$(dirname "$PYTHON"):$PATH
command -v mpirun >/dev/null || {
    echo "train.sh: there is no mpirun: install an MPI, or use launcher=torchrun" >&2
    exit 1
}
if [ "$(id -u)" = 0 ]; then # in a container, say: Open MPI wants to be told twice that this is meant
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
exec mpirun -n "$nworkers" ${hostfile:+--hostfile "$hostfile"} --oversubscribe --bind-to none \
    --mca mpi_yield_when_idle 1 "${command[@]}"
