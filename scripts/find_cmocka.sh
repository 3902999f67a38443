#!/bin/bash
# Finds the unit test library cmocka and writes two response files for the compiler: FOLDER/cflags and FOLDER/libs. A
# cmocka that pkg-config knows is used, else Debian's package, unpacked in FOLDER.
#
#   scripts/find_cmocka.sh FOLDER [ARCHITECTURE]     ARCHITECTURE: Debian's name of another one than this machine's
set -euo pipefail

folder=${1:?usage: find_cmocka.sh FOLDER [ARCHITECTURE]}
foreign=${2:+:$2}
scripts=$(dirname "$0")
mkdir -p "$folder"

if [ -z "$foreign" ] && pkg-config --exists cmocka 2>/dev/null; then
    pkg-config --cflags cmocka >"$folder/cflags"
    pkg-config --libs cmocka >"$folder/libs"
    exit 0
fi

"$scripts/debian_package.sh" "libcmocka0$foreign" "$folder/root"
"$scripts/debian_package.sh" "libcmocka-dev$foreign" "$folder/root"
root=$(cd "$folder/root/usr" && pwd)
library=$(find "$root/lib" -name libcmocka.so -print -quit)
if [ -z "$library" ]; then
    echo "find_cmocka.sh: Debian's libcmocka-dev holds no libcmocka.so: install cmocka so that pkg-config finds it" >&2
    exit 1
fi
echo "-I\"$root/include\"" >"$folder/cflags"
echo "-L\"${library%/*}\" -Wl,-rpath,\"${library%/*}\" -lcmocka" >"$folder/libs"
