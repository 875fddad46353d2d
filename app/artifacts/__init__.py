"""Artifacts: a checkpoint as one ONNX file, made once in a process of its own, kept, and opened without torch."""

from .opening import open_served
from .store import ARTIFACTS_FOLDER
from .timings import timings_of

__all__ = ["ARTIFACTS_FOLDER", "open_served", "timings_of"]
