"""Trains ResNet-20 on CIFAR-10 (or Fashion-MNIST) with one process per worker and gTop-k between them.

    mpirun -n 4 python examples/cifar_resnet20.py
    torchrun --nproc-per-node 4 examples/cifar_resnet20.py --algorithm dense
    python examples/cifar_resnet20.py                          # one process: plain SGD

The recipe is that of the gTop-k paper (Shi et al., ICDCS 2019) and its code: batch 32 a worker, momentum 0.9, weight decay
1e-4, 141 epochs, learning rate 0.1 with warm-up, divided by 10 at epochs 81, 122 and 155; in the first four epochs the
density falls from 0.25 in four steps.
"""

from cifar import Cifar
from resnet20 import ResNet20
from trainer import main

if __name__ == "__main__":
    main(Cifar("ResNet-20", ResNet20), __doc__)
