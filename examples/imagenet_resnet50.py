"""Trains ResNet-50 on ImageNet with one process per worker and gTop-k between them.

    mpirun -n 4 python examples/imagenet_resnet50.py --data FOLDER     # FOLDER/train/CLASS/*.JPEG, FOLDER/val/CLASS/*.JPEG
    mpirun -n 4 python examples/imagenet_resnet50.py                   # made-up images, for throughput

torchvision's model, 25.6 million parameters. The published recipe: batch 64 a worker, momentum 0.9, weight decay 5e-4, 95
epochs, learning rate 0.01 with warm-up, divided by 10 at epochs 30, 60 and 80.
"""

from imagenet import ImageNet
from trainer import main

if __name__ == "__main__":
    main(ImageNet("ResNet-50", lambda models, classes: models.resnet50(num_classes=classes), batch_size=64), __doc__)
