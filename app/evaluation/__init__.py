"""Evaluation: accuracy of a checkpoint or a service on labelled photos, and settings that would raise it."""

from .evaluate import Evaluation, Options, evaluate
from .facts import TRIED, as_environment, as_flags
from .photos import find_photos
from .picture import check_can_draw, draw
from .service import evaluate_service, is_url

__all__ = [
    "TRIED",
    "Evaluation",
    "Options",
    "as_environment",
    "as_flags",
    "check_can_draw",
    "draw",
    "evaluate",
    "evaluate_service",
    "find_photos",
    "is_url",
]
