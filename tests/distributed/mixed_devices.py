"""harness.py with another device or instruction set on every rank."""

import os
import sys

import harness

RANK = int(os.environ["OMPI_COMM_WORLD_RANK"])

if __name__ == "__main__":
    if RANK % 3 == 1:
        os.environ["GTOPK_DEVICE"] = "reference"
    elif RANK % 3 == 2:
        os.environ["GTOPK_ISA"] = "scalar"
    harness.main(sys.argv[1:])
