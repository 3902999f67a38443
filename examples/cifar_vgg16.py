"""Trains VGG-16 on CIFAR-10 (or Fashion-MNIST) with one process per worker and gTop-k between them.

    mpirun -n 4 python examples/cifar_vgg16.py

The recipe is that of `cifar_resnet20.py`; the model has 55 times its parameters, and less computing for each.
"""

from cifar import Cifar
from trainer import main
from vgg16 import VGG16

if __name__ == "__main__":
    main(Cifar("VGG-16", VGG16), __doc__)
