#!/bin/bash
# Runs the fuzzers' targets under clang's libFuzzer, which chooses mutations by the code that they reach, with address and
# undefined-behaviour sanitizers. Prints one line of JSON a target, as the driver that is built with gcc does.
#
#   scripts/libfuzzer.sh BUILD SECONDS TARGET...     SECONDS: in all
#
# Skipped, with a line that says so and status 0, where there is no clang or it comes without libFuzzer; as root that is
# installed when apt-get can. An input that breaks a promise is left in the current folder, as crash-* or timeout-*.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 BUILD SECONDS TARGET..." >&2
    exit 2
fi
build=$1 seconds=$(($2 / ($# - 2)))
shift 2

skip() {
    echo "libfuzzer.sh: SKIPPED: $1"
    exit 0
}

clang=$("$(dirname "$0")/find_clang.sh") || skip "no clang on PATH (Debian: apt-get install clang)"

has_libfuzzer() {
    echo 'int LLVMFuzzerTestOneInput(const unsigned char *data, unsigned long bytes) { return !data && bytes; }' |
        "$clang" -x c -fsanitize=address,undefined,fuzzer - -o /dev/null 2>/dev/null
}

if ! has_libfuzzer; then
    version=$("$clang" -dumpversion)
    package=libclang-rt-${version%%.*}-dev
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get install -qq --no-install-recommends "$package" >/dev/null 2>&1 || true
    fi
    has_libfuzzer || skip "$clang has no libFuzzer (Debian: apt-get install $package)"
fi

"${MAKE:-make}" --no-print-directory BUILD="$build" CC="$clang" SANITIZE=address,undefined,fuzzer-no-link \
    CFLAGS="-O1 -g -Werror" libfuzzers
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for target in "$@"; do
    found="$build/tests/fuzz/corpus-$target" # what libFuzzer adds stays out of the committed corpus
    mkdir -p "$found"
    "$build/tests/fuzz/libfuzzer_$target" -max_total_time="$seconds" -max_len=8192 -timeout=20 -print_final_stats=1 \
        "$found" "tests/fuzz/corpus/$target" >"$log" 2>&1 || {
        tail -n 60 "$log" >&2
        exit 1
    }
    awk -v target="$target" -v seconds="$seconds" '
        /^stat::number_of_executed_units:/ { inputs = $2 }
        / cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") edges = $(i + 1) }
        END { printf "{\"target\": \"%s\", \"engine\": \"libFuzzer\", \"inputs\": %d, \"edges\": %d, \"seconds\": %d}\n",
                     target, inputs, edges, seconds }' "$log"
done
