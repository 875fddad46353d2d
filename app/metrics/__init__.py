"""Prometheus metrics: those of the service, and those of each model, which go with it."""

from .by_model import ModelMetrics
from .metrics import Metrics
from .shared_files import SharedFiles

__all__ = ["Metrics", "ModelMetrics", "SharedFiles"]
