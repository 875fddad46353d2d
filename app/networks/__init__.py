"""Architecture names → torch modules that hold a checkpoint's weights."""

from .build import build_network, count_classes

__all__ = ["build_network", "count_classes"]
