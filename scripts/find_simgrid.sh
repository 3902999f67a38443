#!/bin/bash
# Finds SimGrid with SMPI, or fetches Debian's packages and unpacks them: no root, nothing is installed. FOLDER gets
# cflags, libs and smpirun, for a program that is compiled with any C compiler.
#
#   scripts/find_simgrid.sh FOLDER
set -euo pipefail

folder=${1:?usage: find_simgrid.sh FOLDER}
scripts=$(dirname "$0")
version=3.32
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

if command -v smpirun >/dev/null && [ -r /usr/include/smpi/smpi.h ]; then
    root='' libraries=''
    cp "$(command -v smpirun)" "$folder/smpirun"
else
    root=$folder/root
    # SimGrid, and those of its libraries that machines without it often lack.
    packages=(libsimgrid-dev "libsimgrid$version" libboost-context1.74.0 libboost-stacktrace1.74.0 libgfortran5 libns3.37
        libgsl27 libgslcblas0)
    for package in "${packages[@]}"; do
        "$scripts/debian_package.sh" "$package" "$root" || {
            echo "find_simgrid.sh: make bench-scale needs SimGrid $version: install Debian 12's libsimgrid-dev, or run it there" >&2
            exit 1
        }
    done
    libraries=$(dirname "$(find "$root/usr/lib" -name libsimgrid.so -print -quit)")
    # Its folder of libraries stands in the script.
    sed "s|/usr/lib/[a-z0-9_]*-linux-gnu|$libraries|g" "$root/usr/bin/smpirun" >"$folder/smpirun"
    chmod +x "$folder/smpirun"
    LD_LIBRARY_PATH=$libraries ldd "$libraries/libsimgrid.so" | grep 'not found' >&2 && {
        echo "find_simgrid.sh: these libraries of Debian 12 are missing here" >&2
        exit 1
    }
fi
if [ -n "$root" ]; then
    printf -- '-isystem %s/usr/include -isystem %s/usr/include/smpi -include %s/usr/include/smpi/smpi_helpers.h\n' "$root" "$root" "$root"
else
    printf -- '-isystem /usr/include/smpi -include /usr/include/smpi/smpi_helpers.h\n'
fi >"$folder/cflags"
printf -- '%s -lsimgrid -lm\n' "${libraries:+-L$libraries -Wl,-rpath,$libraries -Wl,-rpath-link,$libraries}" >"$folder/libs"
