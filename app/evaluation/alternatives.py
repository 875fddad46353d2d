"""Plausible alternative values of each decision, one changed at a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import PRESETS, Checkpoint
from ..layers import ResNetSwitches
from ..types import Interpolation, Preprocessing
from .facts import PREPROCESSING, Facts, resized

# Epsilons of batch normalisation: torch and TF-slim; TensorFlow and old Keras; Keras applications.
_EPSILONS = (1e-5, 1e-3, 1.001e-5)
# Short sides relative to a crop of 224: the crop itself, torchvision's V2, timm's, torchvision's V1.
_SHORT_SIDES = (1.0, 232 / 224, 235 / 224, 256 / 224)
# The share of the photos used to find a label order that it must additionally get right to be tried.
_LEAST_GAIN = 0.1
_USUAL_CROP = (224, 224)
_CROPS = (128, 176, 224, 256, 288, 384)
_UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_LEVELS = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))


@dataclass(frozen=True, slots=True)
class Alternative:
    """A set of facts that differs from the base, usually in one decision."""

    fact: str
    """The decision's name, as `inspect` shows it."""
    shown: str
    """The value as shown to the user."""
    facts: Facts
    """The facts with this value, and all others unchanged."""
    held_out: bool = False
    """Whether it was derived from every other photo, so that only the remaining ones can test it."""


def alternatives(
    base: Facts, checkpoint: Checkpoint, names: Collection[str], labels: tuple[str, ...]
) -> list[Alternative]:
    """Every plausible value of the decisions `names`, except the present ones and those that change nothing.

    The label order found from the photos is not among them: see `shown_order`.
    """
    found = [
        *(_switches(base, names) if base.switches is not None else ()),
        *_preprocessings(base, checkpoint, names),
        *(_orders(base, labels) if "labels" in names else ()),
        *(_activations(base) if "activation" in names else ()),
    ]
    seen = {base}
    different = []
    for each in found:
        if each.facts not in seen:
            seen.add(each.facts)
            different.append(each)
    return different


def _switches(base: Facts, names: Collection[str]) -> Iterator[Alternative]:
    switches = base.switches
    assert switches is not None
    values: dict[str, Iterable[object]] = {
        "stride_in": ("3x3", "1x1"),
        "stem": ("symmetric", "same"),
        "pool": ("symmetric", "ceil", "valid"),
        "epsilon": _EPSILONS,
    }
    for name in values.keys() & set(names):
        for value in values[name]:
            changed: ResNetSwitches = replace(switches, **{name: value})  # type: ignore[arg-type]
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            yield Alternative(name, shown, replace(base, switches=changed))


def _preprocessings(base: Facts, checkpoint: Checkpoint, names: Collection[str]) -> Iterator[Alternative]:
    """Each preset, and the base with one part changed; for a graph with a fixed input size, only that size."""
    size = checkpoint.graph.size if checkpoint.graph is not None else None
    now = base.preprocessing
    ways = {
        "preprocessing": _presets(now),
        "channels": _channels(now),
        "mean": _normalisations(now),
        "resize": _resizes(now),
        "interpolation": _filters(now),
        "crop": _sizes(now),
    }
    for name in PREPROCESSING:
        for shown, preprocessing in ways[name] if name in names else ():
            if size is None or preprocessing.crop == size:
                yield Alternative(name, shown, replace(base, preprocessing=preprocessing))


_Ways = Iterator[tuple[str, Preprocessing]]


def _presets(now: Preprocessing) -> _Ways:
    """Each preset; for another input size than its own, with the same share of the photo in the crop."""
    for name, preset in PRESETS.items():
        if preset.crop == now.crop or now.crop == _USUAL_CROP:
            yield name, preset
            continue
        short = preset.resize_short_side
        scaled = None if short is None else round(short * min(now.crop) / min(preset.crop))
        yield f"{name} at {now.crop[0]}×{now.crop[1]}", resized(preset, scaled, now.crop)


def _channels(now: Preprocessing) -> _Ways:
    other = "RGB" if now.is_bgr else "BGR"
    yield f"{other}, mean and std in their places", replace(now, is_bgr=not now.is_bgr)
    yield f"{other}, mean and std turned too", _with_normalisation(now, now.mean[::-1], now.std[::-1], not now.is_bgr)


def _normalisations(now: Preprocessing) -> _Ways:
    """Every published normalisation, and none: levels 0 to 255, and levels 0 to 1."""
    published = {(p.mean, p.std) if not p.is_bgr else (p.mean[::-1], p.std[::-1]) for p in PRESETS.values()}
    for mean, std in (*sorted(published), _UNIT, _LEVELS):
        if now.is_bgr:
            mean, std = mean[::-1], std[::-1]
        changed = _with_normalisation(now, mean, std, now.is_bgr)
        yield f"{_figures(changed.mean)}, std {_figures(changed.std)}", changed


def _with_normalisation(
    now: Preprocessing, mean: tuple[float, ...], std: tuple[float, ...], is_bgr: bool
) -> Preprocessing:
    return replace(now, mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]), is_bgr=is_bgr)


def _resizes(now: Preprocessing) -> _Ways:
    side = min(now.crop)
    yield "squashed", resized(now, None, now.crop)
    for ratio in _SHORT_SIDES:
        yield f"short side {round(side * ratio)}", resized(now, round(side * ratio), now.crop)


def _filters(now: Preprocessing) -> _Ways:
    """Pillow's filters, and filters without antialiasing, as in OpenCV and tf.image. Closer variants are not tried."""
    for kernel in (Interpolation.BILINEAR, Interpolation.BICUBIC, Interpolation.NEAREST, Interpolation.LANCZOS):
        yield kernel.value, replace(now, interpolation=kernel, resizer="pillow")
    for kernel in (Interpolation.BILINEAR, Interpolation.BICUBIC):
        changed = replace(now, interpolation=kernel, resizer="torchvision-no-antialias")
        yield f"{kernel.value} without antialiasing", changed


def _sizes(now: Preprocessing) -> _Ways:
    """Other input sizes, with the same share of the photo in the crop."""
    for side in _CROPS:
        short = now.resize_short_side
        scaled = None if short is None else round(short * side / min(now.crop))
        yield str(side), resized(now, scaled, (side, side))


def _orders(base: Facts, labels: tuple[str, ...]) -> Iterator[Alternative]:
    """Common label orders of training code: by name as ImageFolder sorts, by number, shifted by one, reversed."""
    count = len(labels)
    places = range(count)
    ways: list[tuple[str, Iterable[int]]] = [
        ("as the checkpoint has them", places),
        ("sorted by name", sorted(places, key=lambda at: labels[at])),
        ("sorted by name, without case", sorted(places, key=lambda at: labels[at].casefold())),
        ("sorted as numbers", sorted(places, key=lambda at: _natural(labels[at]))),
        ("shifted by one", [*range(1, count), 0]),
        ("shifted by one, the other way", [count - 1, *range(count - 1)]),
        ("backwards", reversed(places)),
    ]
    for shown, order in ways:
        chosen: tuple[int, ...] | None = tuple(order)
        if chosen == tuple(places):
            chosen = None
        yield Alternative("labels", shown, replace(base, order=chosen))


def _natural(label: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", label) if part]


def shown_order(base: Facts, answers: NDArray[np.int64], truths: NDArray[np.int64], count: int) -> Alternative | None:
    """The label order that fits the photos best: each output gets the class of which most photos have it first.

    `answers` and `truths` are the first outputs and the true classes of the photos used for it. None if the order makes
    only a few more of them right.
    """
    now = base.order or tuple(range(count))
    votes = Counter(zip(answers.tolist(), truths.tolist(), strict=True))
    order: dict[int, int] = {}
    taken: set[int] = set()
    # Pairs with the most votes first; among equals, those of the present order.
    for output, label in sorted(votes, key=lambda pair: (-votes[pair], now[pair[0]] != pair[1], pair)):
        if output not in order and label not in taken:
            order[output] = label
            taken.add(label)
    for output in range(count):
        # No photo has this output first: it keeps its class if that is free.
        if output not in order and now[output] not in taken:
            order[output] = now[output]
            taken.add(now[output])
    left = iter([label for label in now if label not in taken])
    chosen = tuple(order[output] if output in order else next(left) for output in range(count))
    right = sum(votes[output, label] for output, label in enumerate(chosen))
    was_right = sum(votes[output, label] for output, label in enumerate(now))
    if right - was_right <= _LEAST_GAIN * len(answers):
        return None
    return Alternative("labels", "as the photos show them", replace(base, order=chosen), held_out=True)


def _activations(base: Facts) -> Iterator[Alternative]:
    for activation in ("softmax", "sigmoid", "none"):
        yield Alternative("activation", activation, replace(base, activation=activation))


def _figures(values: Iterable[float]) -> str:
    return "/".join(f"{value:.4g}" for value in values)
