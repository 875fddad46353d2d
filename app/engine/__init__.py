"""The engine: what the classifier hands pixels to. In this process, or in one of its own (`remote`, `host`)."""

from .base import Engine, EngineState, Scored
from .in_process import InProcessEngine
from .planning import Timings

__all__ = ["Engine", "EngineState", "InProcessEngine", "Scored", "Timings"]
