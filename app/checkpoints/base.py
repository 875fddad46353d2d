"""What every reader ends in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ..types import Preprocessing

Weights = Mapping[str, NDArray[Any]]
"""Parameter and buffer names, as torchvision spells them, → float32 arrays."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A network's weights and all that is needed to serve them right."""

    weights: Weights
    architecture: str
    class_count: int
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    sha256: str
    """Hex digest of the weights file."""
    source: str
    """Where the weights came from, for a person."""
    warnings: tuple[str, ...] = ()
    """Assumptions that could be wrong, each a sentence."""
    is_fallback: bool = False
    """Whether it stands in for other weights that were not to be had."""
