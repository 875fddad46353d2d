"""Models without weights that differ in everything a checkpoint decides, and what each must say of an image."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

from app.backends.null import NULL_CHECKPOINT, NullBackend
from app.checkpoints import Checkpoint
from app.images import decode
from tests.photos import LIMITS


@cache
def checkpoint_of(number: int) -> Checkpoint:
    """Version `number` of the null model: neighbours have other inputs and other classes, and all have own labels."""
    side, classes = 64 + 16 * (number % 3), 20 + number % 5
    return replace(
        NULL_CHECKPOINT,
        sha256=f"{number:08x}".ljust(64, "0"),
        class_count=classes,
        labels=tuple(f"version {number} kind {kind}" for kind in range(classes)),
        preprocessing=replace(NULL_CHECKPOINT.preprocessing, resize_short_side=side + 8, crop=(side, side)),
    )


@cache
def two_best(number: int, image: bytes) -> tuple[str, ...]:
    """The labels of the two best classes that version `number` answers for an encoded image."""
    checkpoint = checkpoint_of(number)
    found = NullBackend(checkpoint).classes_of(decode(image, checkpoint.preprocessing, LIMITS))
    # Where they are one class, the second is any other.
    return tuple(checkpoint.labels[kind] for kind in dict.fromkeys(found))


def version_of(answer: dict[str, object], image: bytes) -> int:
    """Which version answered, once its labels are found to be those that this version gives the image."""
    number = int(answer["model"]["version"], 16)  # type: ignore[index]
    labels = [prediction["label"] for prediction in answer["predictions"]]  # type: ignore[attr-defined]
    expected = two_best(number, image)
    assert tuple(labels[: len(expected)]) == expected, (number, labels, expected)
    return number


def series_of_models(page: str) -> set[str]:
    """The samples of models in /metrics, without their values and with `*` for each version."""
    lines = {line.rpartition(" ")[0] for line in page.splitlines() if "version=" in line}
    return {re.sub(r'version="\w+"', 'version="*"', line) for line in lines}


def versions_in(page: str) -> set[int]:
    """The versions that /metrics has samples of."""
    return {int(version, 16) for version in re.findall(r'version="(\w+)"', page)}
