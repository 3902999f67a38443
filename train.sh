#!/bin/bash
# Trains one of the published workloads, as their authors' scripts do:
#
#   dnn=resnet20 nworkers=4 ./train.sh
#
# Variables, with what they are when they are not given:
#   dnn          resnet20; or vgg16, alexnet, resnet50, lstm, lstman4
#   nworkers     4: processes
#   hostfile     none: all of them on this machine; else Open MPI's list of hosts
#   density      0.001; or default: what gtopk.DistributedOptimizer does by itself
#   compressor   gtopk; or gtopk-split, gtopk-tree, topk, auto, and dense or none
#   batch_size, lr, max_epochs
#                the workload's published ones
#   nstepsupdate 1, nothing else
#   data_dir     where the data lies; examples/README.md says what is taken without it
#   launcher     mpirun; or torchrun; or srun, under Slurm
#   show         1: only prints what would be started
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
launcher=${launcher:-mpirun}
case $compressor in
gtopk | gtopk-split | gtopk-tree | topk | auto | dense) ;;
none) compressor=dense ;;
topk2)
    echo "train.sh: compressor=topk2 is not there: gtopk keeps the k largest of the sum, too, and sends less for it; topk keeps all" >&2
    exit 2
    ;;
*)
    echo "train.sh: compressor=$compressor is none of gtopk, gtopk-split, gtopk-tree, topk, auto, dense, none" >&2
    exit 2
    ;;
esac
case $launcher in
mpirun | torchrun | srun) ;;
*)
    echo "train.sh: launcher=$launcher is none of mpirun, torchrun, srun" >&2
    exit 2
    ;;
esac
if ! [[ $nworkers =~ ^[1-9][0-9]*$ ]]; then
    echo "train.sh: nworkers=$nworkers is no number of processes" >&2
    exit 2
fi
if [ "${nstepsupdate:-1}" != 1 ]; then
    echo "train.sh: nstepsupdate=$nstepsupdate: only 1 is there; a larger batch_size comes to the same" >&2
    exit 2
fi
if [ "$launcher" != mpirun ] && [ -n "${hostfile:-}" ]; then
    echo "train.sh: hostfile=$hostfile is for mpirun; with torchrun start the script on each host: examples/README.md;" \
        "srun takes Slurm's hosts" >&2
    exit 2
fi

options=(--algorithm "$compressor" --density "$density")
[ -z "${batch_size:-}" ] || options+=(--batch-size "$batch_size")
[ -z "${lr:-}" ] || options+=(--lr "$lr")
[ -z "${max_epochs:-}" ] || options+=(--epochs "$max_epochs")
[ -z "${data_dir:-}" ] || options+=(--data "$data_dir")

print_command() { # as it could be typed
    printf '%q ' "$@"
    echo
}

# PYTHON names an interpreter that has everything; otherwise make sees to it.
if [ -z "${PYTHON:-}" ]; then
    install=(make -s -C "$here" workloads)
    if [ "${show:-}" = 1 ]; then print_command "${install[@]}"; else "${install[@]}"; fi
    PYTHON=$here/.venv/bin/python
fi
command=("$PYTHON" "$here/examples/$script.py" "${options[@]}" "$@")
case $launcher in
torchrun) command=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$nworkers" "${command[@]:1}") ;;
srun) command=(srun --ntasks "$nworkers" --kill-on-bad-exit=1 "${command[@]}") ;;
mpirun)
    PATH=$(dirname "$PYTHON"):$PATH
    command=(mpirun -n "$nworkers" ${hostfile:+--hostfile "$hostfile"} --oversubscribe --bind-to none
        --mca mpi_yield_when_idle 1 "${command[@]}")
    ;;
esac
if [ "${show:-}" = 1 ]; then
    print_command "${command[@]}"
    exit
fi
if [ "$launcher" != torchrun ] && ! command -v "$launcher" >/dev/null; then
    echo "train.sh: there is no $launcher: install it, or use launcher=torchrun" >&2
    exit 1
fi
if [ "$launcher" = mpirun ] && [ "$(id -u)" = 0 ]; then # in a container, say: Open MPI wants to be told twice that this is meant
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
exec "${command[@]}"
