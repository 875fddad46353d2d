"""int8 quantization for CPUs: from a checkpoint and photos to a servable ONNX file and a report."""

from .output import write
from .photos import FEW_PHOTOS, MIN_PHOTOS, Photos, read_photos
from .picture import check_can_draw, draw
from .quantize import Options, Progress, quantize
from .report import NEAR_TIE, Report

__all__ = [
    "FEW_PHOTOS",
    "MIN_PHOTOS",
    "NEAR_TIE",
    "Options",
    "Photos",
    "Progress",
    "Report",
    "check_can_draw",
    "draw",
    "quantize",
    "read_photos",
    "write",
]
