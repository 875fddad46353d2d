"""Names of tensors as training scripts write them (`module.`, `model.`, …) → torchvision's names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from .base import Weights

# Prefixes from wrappers: `module.` from DataParallel and DDP, `_orig_mod.` from torch.compile, the others from
# Lightning and custom classes. Any sequence of them is removed.
_PREFIXES = re.compile(r"^(?:(?:module|_orig_mod|model|timm_model|net|backbone)\.)+")
# Counters, which inference does not need.
_IGNORED = re.compile(r"(?:^|\.)(?:num_batches_tracked|n_averaged)$")
# Old DenseNet files have norm.1 for the module norm1 (torchvision/models/densenet.py, _load_state_dict).
_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$")


def without_prefixes(name: str) -> str:
    return _PREFIXES.sub("", name)


def is_counter(name: str) -> bool:
    """Whether the entry is a counter, which inference does not need in any network."""
    return _IGNORED.search(name) is not None


def clean(weights: Weights, path: Path) -> Weights:
    """Drop counters and remove prefixes. Raises `CheckpointError` for two entries with one name."""
    cleaned: dict[str, NDArray[Any]] = {}
    for name, values in weights.items():
        bare = _DENSENET.sub(r"\1\2", without_prefixes(name))
        if is_counter(bare):
            continue
        if bare in cleaned:
            raise CheckpointError(
                f"{path} holds two networks: several entries are {bare} once the prefix is off. Save the one to serve."
            )
        cleaned[bare] = values
    return cleaned


def check_values(weights: Weights, path: Path) -> None:
    """Raises `CheckpointError` for values that are not finite, and for variances below zero."""
    for name, values in weights.items():
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{path}: {name} has values that are not finite. The training diverged, or the file is damaged."
            )
        if name.endswith("running_var") and (values < 0).any():
            raise CheckpointError(f"{path}: {name} has a variance below zero. The file is damaged.")


def never_trained(weights: Weights) -> bool:
    """Whether every batch normalisation still has its initial statistics: mean 0, variance 1."""
    statistics = [(name, values) for name, values in weights.items() if ".running_" in f".{name}"]
    return bool(statistics) and all((values == float("var" in name)).all() for name, values in statistics)
