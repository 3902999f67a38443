#!/bin/bash
# Runs tests/property/digest.c, built, in every variant that must give the same bits: devices, instruction sets, threads,
# the caller's floating-point flags. Each output is compared with FOLDER/expected, which the first run of all writes;
# where one differs, the lines that do are shown.
#
#   scripts/compare_digests.sh FOLDER NAME PROGRAM     NAME: of this build in the messages; RUNNER: a command that runs it
#
# A FOLDER that another build has filled makes this a comparison of builds.
set -uo pipefail

folder=${1:?usage: compare_digests.sh FOLDER NAME PROGRAM} build=$2 program=$3
read -ra runner <<<"${RUNNER:-}"
mkdir -p "$folder"
same=0 skipped=() failed=()

# Not 0: this machine does not run it.
variant() { # NAME [VARIABLE=VALUE]... [--OPTION]...
    local name="$build $1" settings=() options=() word
    for word in "${@:2}"; do
        case $word in
        --*) options+=("$word") ;;
        *) settings+=("$word") ;;
        esac
    done
    env "${settings[@]}" "${runner[@]}" "$program" "${options[@]}" </dev/null >"$folder/got" 2>"$folder/errors"
    local status=$?
    if [ $status -eq 77 ]; then
        skipped+=("$1")
        return 1
    fi
    if [ $status -ne 0 ]; then
        echo "digest: $name: status $status" >&2
        cat "$folder/errors" >&2
        failed+=("$name")
        return 0
    fi
    [ -e "$folder/expected" ] || { cp "$folder/got" "$folder/expected" && echo "$name" >"$folder/first"; }
    if cmp -s "$folder/expected" "$folder/got"; then
        same=$((same + 1))
    else
        echo "digest: $name has other bits than $(cat "$folder/first"):" >&2
        diff "$folder/expected" "$folder/got" | head -n 12 >&2
        failed+=("$name")
    fi
    return 0
}

variant reference GTOPK_DEVICE=reference
variant "reference, caller's flags" GTOPK_DEVICE=reference --flags
variant guarded GTOPK_DEVICE=guarded
for isa in scalar avx2 avx512 neon; do
    variant "$isa" GTOPK_ISA=$isa || continue
    variant "$isa, in parts" GTOPK_ISA=$isa --parts
    variant "$isa, two threads, caller's flags" GTOPK_ISA=$isa --threads --flags
done

[ ${#skipped[@]} -eq 0 ] || printf "digest: $build: skipped, this machine does not run it: %s\n" "${skipped[@]}"
if [ ${#failed[@]} -gt 0 ]; then
    echo "digest: ${#failed[@]} variants of $build have other bits: ${failed[*]}" >&2
    exit 1
fi
echo "digest: $build: $same variants, the same $(wc -l <"$folder/expected") hashes in each as in $(cat "$folder/first")"
