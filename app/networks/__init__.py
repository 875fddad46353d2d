"""Architecture names → torch modules that hold a checkpoint's weights."""

from .build import RESNET50_VARIANTS, build_network, count_classes

__all__ = ["RESNET50_VARIANTS", "build_network", "count_classes"]
