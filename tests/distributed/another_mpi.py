"""OMPI_COMM_WORLD_SIZE was set to a number that MPI itself does not show, as when mpirun is another MPI's."""

import os

os.environ["OMPI_COMM_WORLD_SIZE"] = "7"

import gtopk

try:
    gtopk.init(transport="mpi")
except gtopk.TransportError as error:
    print(error)
