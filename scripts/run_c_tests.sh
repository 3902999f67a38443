#!/bin/bash
# Runs test programs, as many at once as there are processors, whatever fails, and then says which did. What a program
# prints comes in one piece when it has ended; each prints its own summary.
#
#   scripts/run_c_tests.sh ["NAME=VALUE ... ]PROGRAM["]...      JOBS: how many at once; LIMIT: seconds for each (600);
#                                                               RUNNER: a command that runs them (qemu-...)
set -uo pipefail

jobs=${JOBS:-$(nproc)}
read -ra runner <<<"${RUNNER:-}"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

run() { # run NUMBER SETTINGS-AND-PROGRAM
    local said=$folder/$1 settings program begin=$SECONDS status
    read -ra settings <<<"$2"
    program=${settings[-1]}
    unset 'settings[-1]'
    env "${settings[@]}" timeout --kill-after=10 "${LIMIT:-600}" "${runner[@]}" "$program" </dev/null >"$said" 2>&1
    status=$?
    program="${program#*/}${settings[*]:+ with ${settings[*]}}"
    exec 9>>"$folder/printing"
    flock 9
    echo "== $program: $((SECONDS - begin)) s"
    cat "$said"
    [ $status -ne 124 ] || echo "$program: killed after ${LIMIT:-600} s" >&2
    [ $status -eq 0 ] || echo "$program (status $status)" >>"$folder/failed"
}

number=0
for program in "$@"; do
    [ "$(jobs -rp | wc -l)" -lt "$jobs" ] || wait -n
    number=$((number + 1))
    run $number "$program" &
done
wait
if [ -s "$folder/failed" ]; then
    mapfile -t failed <"$folder/failed"
    echo "C tests: ${#failed[@]} of $# programs failed: ${failed[*]}" >&2
    exit 1
fi
echo "C tests: all $# programs passed"
