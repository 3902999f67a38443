#!/bin/bash
# Prints the name of the newest clang on PATH; status 1 where there is none.
set -euo pipefail

for name in clang clang-{22..14}; do
    if command -v "$name" >/dev/null; then
        echo "$name"
        exit
    fi
done
exit 1
