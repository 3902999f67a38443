#!/bin/bash
# Builds the library and some of its tests in C with another compiler, or for another architecture, runs them, and
# compares the bits with what this machine's build left in DIGESTS (make/cross.mk).
#
#   scripts/cross_tests.sh clang|aarch64 BUILD DIGESTS
#
# Skipped, with a line that says so and status 0, where a tool is missing. As root the cross compiler and qemu are
# installed when apt-get can; clang is never installed.
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: $0 clang|aarch64 BUILD DIGESTS" >&2
    exit 2
fi
what=$1 build=$2 digests=$3

skip() {
    echo "cross_tests.sh: SKIPPED: $what: $1"
    exit 0
}

have() {
    command -v "$1" >/dev/null
}

case $what in
clang)
    compiler=$("$(dirname "$0")/find_clang.sh") || skip "no clang on PATH (Debian: apt-get install clang)"
    exec "${MAKE:-make}" --no-print-directory BUILD="$build" CC="$compiler" CFLAGS="-O3 -g -Werror" \
        COMPARE_WITH="$digests" bits-tests
    ;;
aarch64)
    compiler=aarch64-linux-gnu-gcc libraries=/usr/aarch64-linux-gnu
    if ! { have $compiler && have qemu-aarch64; } && [ "$(id -u)" = 0 ] && have apt-get; then
        apt-get install -qq --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user >/dev/null 2>&1 || true
    fi
    have $compiler || skip "no $compiler (Debian: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross)"
    have qemu-aarch64 || skip "no qemu-aarch64 (Debian: apt-get install qemu-user)"
    # Under qemu everything is some 15 times slower: fewer random runs, fewer ranks.
    export RUNNER="qemu-aarch64 -L $libraries" LIMIT=1200
    export GTOPK_TEST_RUNS=${GTOPK_TEST_RUNS:-100} GTOPK_TEST_SIZES=${GTOPK_TEST_SIZES:-5}
    exec "${MAKE:-make}" --no-print-directory BUILD="$build" CC=$compiler AR=aarch64-linux-gnu-ar CMOCKA_ARCH=arm64 \
        CFLAGS="-O3 -g -Werror" COMPARE_WITH="$digests" bits-tests
    ;;
*)
    echo "cross_tests.sh: no such build: $what" >&2
    exit 2
    ;;
esac
