#!/usr/bin/env bash
# mpirun's remote shell on an emulated cluster: remote_shell.sh HOST COMMAND... runs the command on that host.
host=$1
shift
exec "$(dirname "$0")/cluster.sh" exec "${host#h}" bash -c "$*"
