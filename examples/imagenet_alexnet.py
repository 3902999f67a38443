"""Trains AlexNet on ImageNet with one process per worker and gTop-k between them.

    mpirun -n 4 python examples/imagenet_alexnet.py --data FOLDER      # FOLDER/train/CLASS/*.JPEG, FOLDER/val/CLASS/*.JPEG
    mpirun -n 4 python examples/imagenet_alexnet.py                    # made-up images, for throughput

torchvision's model: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014; 61 million
parameters. The published recipe: batch 256 a worker, momentum 0.9, weight decay 5e-4, 95 epochs, learning rate 0.01 with
warm-up, divided by 10 at epochs 30, 60 and 80.
"""

from imagenet import ImageNet
from trainer import main

if __name__ == "__main__":
    main(ImageNet("AlexNet", lambda models, classes: models.alexnet(num_classes=classes), batch_size=256), __doc__)
