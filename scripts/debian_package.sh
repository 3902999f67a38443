#!/bin/bash
# Unpacks a Debian (or Ubuntu) package into a folder, without root and without installing it. Does nothing when it is
# there already.
#
#   scripts/debian_package.sh NAME[:ARCHITECTURE] FOLDER
#
# The package lists of the system are used where they have the package, else lists fetched into a folder of their own
# ($GTOPK_CACHE/apt, .cache/apt by default); for another architecture always the latter, so that the system need not
# know it. Dependencies are not followed. Gives up after $LIMIT seconds (180).
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: $0 NAME FOLDER" >&2
    exit 2
fi
name=$1 folder=$2 limit=${LIMIT:-180}
cache=${GTOPK_CACHE:-$(dirname "$0")/../.cache}
mark="$folder/.unpacked-$name"
foreign=
[ "$name" = "${name%%:*}" ] || foreign=${name##*:}
[ -e "$mark" ] && exit 0

fail() {
    echo "debian_package.sh: $1" >&2
    exit 1
}

for tool in apt-get dpkg-deb timeout; do
    command -v "$tool" >/dev/null || fail "no $tool here, so the Debian package $name cannot be fetched; put what it holds into $folder by hand"
done

echo "  apt   Debian's package $name, into $folder (up to $limit s)"
lists="$cache/apt${foreign:+-$foreign}"
mkdir -p "$folder" "$lists/lists/partial" "$lists/archives/partial"
folder=$(cd "$folder" && pwd) lists=$(cd "$lists" && pwd)
work=$(mktemp -d "$folder/.download-XXXXXX")
trap 'rm -rf "$work"' EXIT

# apt splits options at spaces nowhere but in its own files, so paths with spaces are safe here.
quiet=(-qq -o Acquire::Retries=2 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o APT::Sandbox::User=root)
own=(-o Dir::State::lists="$lists/lists" -o Dir::Cache="$lists" -o Dir::Cache::archives="$lists/archives" -o Debug::NoLocking=1)
[ -z "$foreign" ] || own+=(-o APT::Architecture="$foreign" -o APT::Architectures="$foreign")
deadline=$((SECONDS + limit))

apt() {
    local left=$((deadline - SECONDS))
    [ "$left" -gt 0 ] || return 124
    (cd "$work" && timeout --kill-after=5 "$left" apt-get "${quiet[@]}" "$@" </dev/null >>"$work/log" 2>&1)
}

fresh() { # own lists younger than a day
    [ -n "$(find "$lists/lists" -maxdepth 1 -name '*_Packages*' -mtime -1 -print -quit)" ]
}

if [ -n "$foreign" ] || ! apt download "$name"; then
    { fresh && apt "${own[@]}" download "$name"; } || { apt "${own[@]}" update && apt "${own[@]}" download "$name"; } || {
        sed 's/^/    /' "$work/log" | tail -n 8 >&2
        fail "the Debian package $name could not be fetched within $limit s (the lines above say why): is this machine online, and is apt's list of sources right?"
    }
fi
package=("$work"/*.deb)
dpkg-deb -x "${package[0]}" "$folder" || fail "${package[0]##*/} cannot be unpacked into $folder"
: >"$mark"
