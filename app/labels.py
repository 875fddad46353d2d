"""Class index → name: ImageNet's own, a file beside the checkpoint, or the index itself."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

from .errors import LabelsError

IMAGENET_CLASSES = 1000
LABEL_FILES = ("labels.txt", "index_to_name.json")

Labels = tuple[str, ...]


@cache
def imagenet_labels() -> Labels:
    """The 1000 ImageNet categories by torchvision's names, each another: 134 is "crane bird" and 517 "crane"."""
    text = (files(__package__) / "data" / "imagenet1k_labels.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def labels_beside(folder: Path) -> Path | None:
    """The labels file in `folder`, if there is one. Raises `LabelsError` where there are two."""
    found = [folder / name for name in LABEL_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise LabelsError(
            f"Two label files in {folder}: {found[0].name} and {found[1].name}. Remove one, or name one with --labels."
        )
    return found[0] if found else None


def are_labels_of(labels: Labels, class_count: int) -> bool:
    """Whether there is a label for each output. One output tells two classes apart, and may have a label for both."""
    return len(labels) == class_count or (class_count == 1 and len(labels) == 2)


def choose_labels(class_count: int, file: Path | None, told: Labels | None = None) -> Labels:
    """Names for `class_count` classes: from `file`, else as the checkpoint itself tells, else ImageNet's, else indices.

    ImageNet's are for 1000 classes, and for 1001 with "background" before them.

    Raises `LabelsError` where the file cannot be read or does not have one name for each class.
    """
    if file is not None:
        labels = _read(file)
        if not are_labels_of(labels, class_count):
            raise LabelsError(
                f"{file} names {len(labels)} classes, but the checkpoint has {class_count}. "
                f"Give one label for each class, in the order of the class indices."
            )
        return labels
    if told is not None and are_labels_of(told, class_count):
        return told
    if class_count == IMAGENET_CLASSES:
        return imagenet_labels()
    if class_count == IMAGENET_CLASSES + 1:
        return ("background", *imagenet_labels())
    return tuple(str(index) for index in range(class_count))


def _read(file: Path) -> Labels:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise LabelsError(f"Cannot read the labels in {file}: {reason}.") from None
    if file.suffix.lower() != ".json":
        # Not str.splitlines, which also splits at characters that a label may contain.
        return tuple(line.rstrip("\r") for line in text.removesuffix("\n").split("\n"))
    try:
        return _from_json(json.loads(text))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LabelsError(
            f'{file} is not a label map. Expected {{"0": "name", …}} or {{"0": ["id", "name"], …}} with every '
            f"index from 0 up, or a list of names."
        ) from None


def _from_json(document: object) -> Labels:
    """A TorchServe index_to_name.json (name, or list whose last element is the name), or a plain list of names."""
    if isinstance(document, dict):
        entries = [document[str(index)] for index in range(len(document))]
    elif isinstance(document, list):
        entries = document
    else:
        raise TypeError
    names = [entry[-1] if isinstance(entry, list) and entry else entry for entry in entries]
    if not all(isinstance(name, str) for name in names):
        raise TypeError
    return tuple(names)
