#!/usr/bin/env bash
# An emulated cluster on one machine, for measurements on real sockets. Needs root and Linux.
#
#   cluster.sh up NODES RATE           NODES hosts on one switch; RATE of what each host sends: 100mbit, 1gbit or 10gbit;
#                                      ends with an error when the links do not behave like such ones
#   cluster.sh mpirun P COMMAND...     P ranks over all hosts, P a multiple of NODES (Open MPI)
#   cluster.sh torchrun P COMMAND...   the same with torchrun: COMMAND is a Python script and its arguments
#   cluster.sh exec NODE COMMAND...    on one host, 0 to NODES - 1
#   cluster.sh probe                   what the links give: latency, bandwidth, a message after a pause; as JSON
#   cluster.sh bytes                   bytes that each host has sent and received so far, a line each
#   cluster.sh down                    ends what runs there and removes everything; also after a crash
#
# A host is a network namespace with a veth pair to a bridge, which has a namespace of its own. What a host sends is shaped by
# a token bucket; what it receives is not, so an algorithm in which several ranks send to one at a time would look better than
# it is. Nothing is changed outside these namespaces but /etc/netns, where `ip netns` looks for the names of hosts. CLUSTER=name
# keeps several clusters apart; RUN_OPTIONS are given to mpirun or torchrun as well.
set -euo pipefail

name=${CLUSTER:-gtopk}
here=$(dirname "$(readlink -f "$0")")
switch=$name-switch

usage() {
    sed -n '4,12s/^# *//p' "$0" >&2
    exit 2
}

give_up() {
    echo "cluster.sh: $1" >&2
    exit 1
}

nodes() {
    ip netns list | sed -n "s/^$name-h\([0-9]*\)\( .*\)\?$/\1/p" | sort -n
}

need_cluster() {
    count=$(nodes | wc -l)
    ((count > 0)) || give_up "there is no cluster $name: cluster.sh up NODES RATE makes one"
}

check_rights() {
    [ "$(id -u)" = 0 ] || give_up "network namespaces and traffic shaping need root: run it with sudo"
    for program in ip tc; do
        command -v $program >/dev/null || give_up "there is no $program: install Debian's iproute2"
    done
    local try="$name-try" why
    why=$(ip netns add "$try" 2>&1) ||
        give_up "no network namespace can be made ($why). A container needs --privileged, or the capabilities NET_ADMIN \
and SYS_ADMIN and a /run/netns that may be mounted"
    why=$(ip -n "$try" link add e0 type veth peer name e1 2>&1 && ip -n "$try" link add b0 type bridge 2>&1 &&
        ip netns exec "$try" tc qdisc add dev e0 root tbf rate 1gbit burst 16kb latency 50ms 2>&1) || {
        ip netns del "$try"
        give_up "this kernel has no veth, bridge or tbf ($why): modprobe veth bridge sch_tbf"
    }
    ip netns del "$try"
}

# What the bucket lets through at full speed must be short beside a message: 12 kB at 1 Gb/s. It must be longer than a packet
# all the same: a packet that is due while the processor is busy goes late, and a full bucket does not fill any further.
# Packets are not made larger than that by offloading, since the shaper would cut them again, which takes time. cubic: the
# kernel's default may be bbr, which paces by itself, below the rate.
shape() { # NAMESPACE DEVICE
    ip -n "$1" link set "$2" gso_max_size "$((mtu + 14))" gro_max_size "$((mtu + 14))"
    ip netns exec "$1" tc qdisc add dev "$2" root tbf rate "$rate" burst "$burst" latency 20ms
}

up() { # NODES RATE
    local count=$1 rate=$2 burst mtu i j host
    if ! [[ $count =~ ^[0-9]{1,2}$ ]] || ((10#$count < 2 || 10#$count > 64)); then
        give_up "NODES is $count: give 2 to 64"
    fi
    case $rate in
    100mbit) burst=4kb mtu=1500 ;;
    1gbit) burst=12kb mtu=9000 ;;
    10gbit) burst=64kb mtu=9000 ;;
    *) give_up "RATE is $rate: give 100mbit, 1gbit or 10gbit" ;;
    esac
    check_rights
    down
    trap 'down; give_up "setting up failed, and what was made is removed again"' ERR
    ip netns add "$switch"
    ip -n "$switch" link add br0 type bridge
    ip -n "$switch" link set br0 up
    for ((i = 0; i < count; i++)); do
        host=$name-h$i
        ip netns add "$host"
        ip -n "$switch" link add "p$i" type veth peer name e0 netns "$host"
        ip -n "$switch" link set "p$i" mtu "$mtu" master br0 up
        ip -n "$host" addr add "10.77.0.$((i + 1))/24" dev e0
        ip -n "$host" link set lo up
        ip -n "$host" link set e0 mtu "$mtu" alias "$rate" up
        ip -n "$host" route replace 10.77.0.0/24 dev e0 congctl cubic
        shape "$host" e0
        mkdir -p "/etc/netns/$host"
        {
            echo "127.0.0.1 localhost"
            for ((j = 0; j < count; j++)); do echo "10.77.0.$((j + 1)) h$j"; done
        } >"/etc/netns/$host/hosts"
        echo "hosts: files" >"/etc/netns/$host/nsswitch.conf" # no name server can be reached
    done
    trap - ERR
    [ -n "${NOPROBE:-}" ] || python3 "$here/probe.py" "$name" "$rate" || {
        down
        give_up "the links do not behave like $rate (above); the cluster is removed again. Is the machine busy?"
    }
}

probe() {
    python3 "$here/probe.py" "$name" "$(ip netns exec "$name-h0" cat /sys/class/net/e0/ifalias)"
}

# On host NODE, with its own host name, so that MPI takes the hosts for different ones.
on_node() { # NODE COMMAND...
    local node=$1
    shift
    # shellcheck disable=SC2016 # the inner shell expands them
    exec ip netns exec "$name-h$node" unshare --uts sh -c 'hostname "$0" && exec "$@"' "h$node" "$@"
}

run_mpi() { # P COMMAND...
    local ranks=$1 slots hosts
    shift
    slots=$(ranks_a_node "$ranks")
    hosts=$(nodes | sed "s/.*/h&:$slots/" | paste -sd,)
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 CLUSTER=$name
    # shellcheck disable=SC2086 # RUN_OPTIONS are several words
    on_node 0 mpirun --prtemca plm_ssh_agent "$here/remote_shell.sh" --host "$hosts" -n "$ranks" --map-by slot --bind-to none \
        --mca pml ob1 --mca btl tcp,sm,self --mca btl_tcp_if_include e0 --prtemca prte_if_include e0 \
        --mca mpi_yield_when_idle 1 ${RUN_OPTIONS:-} "$@"
}

run_torch() { # P COMMAND...
    local ranks=$1 slots node status=0
    shift
    pids=()
    slots=$(ranks_a_node "$ranks")
    export GLOO_SOCKET_IFNAME=e0 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    for node in $(nodes); do
        # shellcheck disable=SC2086 # RUN_OPTIONS are several words
        on_node "$node" torchrun --nnodes "$count" --nproc-per-node "$slots" --node-rank "$node" --master-addr 10.77.0.1 \
            --master-port 29500 ${RUN_OPTIONS:-} "$@" &
        pids+=($!)
    done
    trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
    for node in "${pids[@]}"; do
        wait -n || { # one that failed ends all
            status=$?
            break
        }
    done
    exit "$status"
}

ranks_a_node() { # P
    if ! [[ $1 =~ ^[1-9][0-9]{0,3}$ ]] || (($1 % count != 0)); then
        give_up "P is $1: give a multiple of the $count nodes"
    fi
    echo $(($1 / count))
}

bytes() {
    local node counters=/sys/class/net/e0/statistics
    for node in $(nodes); do
        echo "$node" "$(ip netns exec "$name-h$node" cat $counters/tx_bytes $counters/rx_bytes | paste -sd' ')"
    done
}

down() {
    local space pids
    for space in $(ip netns list | sed -n "s/^\($name-\(h[0-9]*\|switch\|try\)\)\( .*\)\?$/\1/p"); do
        pids=$(ip netns pids "$space" || true)
        # shellcheck disable=SC2086 # several numbers
        [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
        ip netns del "$space"
    done
    rm -rf /etc/netns/"$name"-h[0-9]*
}

case ${1:-} in
up) [ $# = 3 ] || usage; up "$2" "$3" ;;
mpirun) [ $# -ge 3 ] || usage; need_cluster; run_mpi "${@:2}" ;;
torchrun) [ $# -ge 3 ] || usage; need_cluster; run_torch "${@:2}" ;;
exec) [ $# -ge 3 ] || usage; need_cluster; on_node "${@:2}" ;;
probe) need_cluster; probe ;;
bytes) need_cluster; bytes ;;
down) down ;;
*) usage ;;
esac
