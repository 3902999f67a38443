#!/bin/bash
# Makes a virtual environment with pip in it. Debian's Python comes without pip's part of `venv` (the package
# python3-venv); then pip is taken from Debian's python3-pip-whl, unpacked without root.
#
#   scripts/make_venv.sh PYTHON FOLDER
set -euo pipefail

python=${1:?usage: make_venv.sh PYTHON FOLDER} folder=${2:?usage: make_venv.sh PYTHON FOLDER}
advice="install python3 (3.10 or newer) and python3-venv, or name another Python: make PYTHON=/path/to/python3.11"

fail() {
    echo "make_venv.sh: $1: $advice" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "there is no $python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$("$python" --version 2>&1) is too old"

if [ -x "$folder/bin/python" ] && "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi
echo "  venv  $folder"
if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -m venv "$folder"
    exit 0
fi

echo "  venv  this Python has no ensurepip: taking pip from Debian's package python3-pip-whl"
"$python" -m venv --without-pip "$folder" || fail "no virtual environment can be made"
unpacked=${GTOPK_CACHE:-.cache}/pip
"$(dirname "$0")/debian_package.sh" python3-pip-whl "$unpacked" || fail "no virtual environment with pip can be made"
wheel=("$unpacked"/usr/share/python-wheels/pip-*.whl)
"$folder/bin/python" "${wheel[0]}/pip" install -q --no-index "${wheel[0]}" || fail "pip cannot be installed into $folder"
