"""Mean and standard deviation of the input in a pickle, as tensors or as lists of three numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Weights
from .families import find_places
from .pickled_document import Entries, attributes_of, entries_of, is_tensor
from .pickled_weights import Place, ReadStorage, load_arrays, place_of

_PAIRS = (
    *(("mean", "std"), ("image_mean", "image_std"), ("img_mean", "img_std"), ("norm_mean", "norm_std")),
    *(("MEAN", "STD"), ("pixel_mean", "pixel_std"), ("normalize_mean", "normalize_std"), ("data_mean", "data_std")),
)
_PLACES = (
    *("meta", "hyper_parameters", "hparams", "args", "config", "cfg", "normalize", "normalization", "normalisation"),
    *("transform", "transforms", "preprocessing", "preprocess", "data_config", "pretrained_cfg", "default_cfg"),
)


def find_normalisation(
    levels: tuple[tuple[str, Entries], ...],
    arrays: Weights,
    read_storage: ReadStorage,
    path: Path,
    big_endian: bool,
) -> dict[str, NDArray[Any]]:
    """`mean` and `std` as the tensors that `left_out` looks for; {} if there are none."""
    if not find_places(arrays) or "mean" in arrays or "std" in arrays:
        return {}

    def numbers(value: Any) -> NDArray[Any] | None:
        place = place_of(value["t"]) if is_tensor(value) else None
        if place is not None and math.prod(place.shape) == 3:
            return _loaded(place, read_storage, path, big_endian)
        items = value.get("l", []) if isinstance(value, dict) else []
        is_three = len(items) == 3 and all(isinstance(n, int | float) and math.isfinite(n) for n in items)
        return np.array(items, np.float32) if is_three else None

    for _, level in levels:
        for entries in (level, *_inner(level)):
            for names in _PAIRS:
                mean, std = (numbers(entries.get(name)) for name in names)
                if mean is not None and std is not None and (std > 0).all():
                    return {"mean": mean, "std": std}
    return {}


def _inner(entries: Entries) -> list[Entries]:
    found = (entries_of(entries.get(name)) or attributes_of(entries.get(name)) for name in _PLACES)
    return [each for each in found if each]


def _loaded(place: Place, read_storage: ReadStorage, path: Path, big_endian: bool) -> NDArray[Any]:
    return load_arrays({"mean or std": place}, read_storage, path, big_endian)["mean or std"].reshape(3)
