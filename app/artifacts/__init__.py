"""Checkpoints as ONNX graphs, made once in a process of their own, kept on disk, and opened without torch."""

from .choice import open_served
from .store import EXPORTS_FOLDER
from .timings import timings_of

__all__ = ["EXPORTS_FOLDER", "open_served", "timings_of"]
