"""The engine: what the classifier hands pixels to. In this process now; one in a process of its own has a place."""

from .base import Engine, EngineState, Scored
from .in_process import InProcessEngine
from .planning import Timings

__all__ = ["Engine", "EngineState", "InProcessEngine", "Scored", "Timings"]
