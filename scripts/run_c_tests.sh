#!/bin/bash
# Runs test programs one after the other, whatever fails, and then says which did. Each prints its own summary.
#
#   scripts/run_c_tests.sh PROGRAM...      LIMIT: seconds for each (600); RUNNER: a command that runs them (qemu-...)
set -uo pipefail

failed=()
read -ra runner <<<"${RUNNER:-}"
for program in "$@"; do
    echo "== ${program#*/}"
    timeout --kill-after=10 "${LIMIT:-600}" "${runner[@]}" "$program" </dev/null
    status=$?
    [ $status -eq 0 ] || failed+=("${program#*/} (status $status)")
    [ $status -ne 124 ] || echo "${program#*/}: killed after ${LIMIT:-600} s" >&2
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "C tests: ${#failed[@]} of $# programs failed: ${failed[*]}" >&2
    exit 1
fi
echo "C tests: all $# programs passed"
