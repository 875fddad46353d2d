"""resnet-serve: an HTTP service that classifies images with a ResNet-50 checkpoint."""

__version__ = "0.1.0"
