"""Names of classes: a file's, ImageNet's, or the class indices."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from .errors import LabelsError
from .files import NotRegularError, TooLargeError, read_bounded

IMAGENET_CLASSES = 1000
# In the order in which they are asked; two that differ are an error.
LABEL_FILES = (
    *("labels.txt", "classes.txt", "class_names.txt", "label_names.txt"),
    *("index_to_name.json", "labels.json", "classes.json", "class_names.json", "class_indices.json"),
    *("class_to_idx.json", "idx_to_class.json", "class_to_index.json", "index_to_class.json"),
    *("id2label.json", "label2id.json", "label_map.json"),
)
# Lists of ImageNet's categories, which lie about in many folders: asked where nothing else is there and they fit.
GENERAL_LABEL_FILES = ("imagenet_classes.txt", "imagenet_class_index.json", "imagenet_labels.json")

Labels = tuple[str, ...]

# A file of names has some hundred kilobytes; 4 MB of JSON become at worst 120 MB of objects, in half a second.
_MAX_BYTES = 4 << 20
# Members of an object that holds the names and something else.
_MEMBERS = (
    *("id2label", "idx_to_class", "index_to_name", "labels", "classes", "class_names", "names"),
    *("class_to_idx", "class_indices", "label2id"),
)
_NUMBER_FIRST = re.compile(r"(\d{1,6})(?:[ \t]*[\t,;:]|[ \t]|[.)][ \t])[ \t]*(\S.*)")
_NUMBER_LAST = re.compile(r"(\S.*?)[ \t]*[ \t,;:][ \t]*(\d{1,6})")
_SHAPES = (
    'Expected a list of names, {"0": "name", …}, {"0": ["id", "name"], …} or {"name": 0, …}, with every index from 0 up'
)


@cache
def imagenet_labels() -> Labels:
    """The 1000 ImageNet categories by torchvision's names, each another: 134 is "crane bird" and 517 "crane"."""
    text = (files(__package__) / "data" / "imagenet1k_labels.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def labels_beside(folder: Path, class_count: int | None = None) -> Path | None:
    """The labels file in `folder`, if there is one.

    A list of ImageNet's categories is one only where it has `class_count` names. Raises `LabelsError` where two files
    name the classes differently.
    """
    found = [folder / name for name in LABEL_FILES if _is_there(folder / name)]
    if not found:
        general = (folder / name for name in GENERAL_LABEL_FILES if _is_there(folder / name))
        return next((file for file in general if class_count is not None and _fits(file, class_count)), None)
    first, *others = found
    for other in others:
        if read_labels(other) != read_labels(first):
            raise LabelsError(
                f"Two label files in {folder} that differ: {first.name} and {other.name}. Remove one, or name one "
                f"with --labels."
            )
    return first


def labels_not_used(folder: Path, labels: Labels, source: str) -> Iterator[str]:
    """A sentence for each label file in `folder` that says otherwise than `labels`, which `source` has."""
    for file in (folder / name for name in LABEL_FILES if _is_there(folder / name)):
        try:
            found = read_labels(file)
        except LabelsError as error:
            yield f"{file.name} is not used: {source} names the classes. {error}"
            continue
        if found != labels:
            yield f"{file.name} is not used: {source} names the classes, and differs ({_difference(labels, found)})."


def _is_there(file: Path) -> bool:
    return os.path.exists(file) and not file.is_dir()


def _fits(file: Path, class_count: int) -> bool:
    try:
        return len(read_labels(file)) == class_count
    except LabelsError:
        return False


def are_labels_of(labels: Labels, class_count: int) -> bool:
    """Whether there is a label for each output. One output tells two classes apart, and may have a label for both."""
    return len(labels) == class_count or (class_count == 1 and len(labels) == 2)


def choose_labels(class_count: int, file: Path | None, told: Labels | None = None) -> Labels:
    """Names for `class_count` classes: from `file`, else as the checkpoint itself tells, else ImageNet's, else indices.

    ImageNet's are for 1000 classes, and for 1001 with "background" before them.

    Raises `LabelsError` where the file cannot be read or does not have one name for each class.
    """
    if file is not None:
        labels = read_labels(file)
        if not are_labels_of(labels, class_count):
            raise LabelsError(
                f"{file} names {len(labels)} classes, but the checkpoint has {class_count}. "
                f"Give one label for each class, in the order of the class indices; if the file is another model's, "
                f"move it away or name the right one with --labels."
            )
        return labels
    if told is not None and are_labels_of(told, class_count):
        return told
    if class_count == IMAGENET_CLASSES:
        return imagenet_labels()
    if class_count == IMAGENET_CLASSES + 1:
        return ("background", *imagenet_labels())
    return tuple(str(index) for index in range(class_count))


def read_labels(file: Path) -> Labels:
    """The names in a file, a text with one a line or JSON. Raises `LabelsError` for one that is no such list."""
    text = _text(file)
    if file.suffix.lower() != ".json":
        if not text.strip():
            raise LabelsError(f"{file} is empty. Write a name for each class into it, one a line, or remove it.")
        return _from_lines(text)
    try:
        return names_by_index(json.loads(text, object_pairs_hook=_unique))
    except (ValueError, RecursionError):
        raise LabelsError(f"{file} is not a label map. {_SHAPES}.") from None


def _text(file: Path) -> str:
    try:
        data = read_bounded(file, _MAX_BYTES)
        # Windows' own tools write UTF-16, with a mark.
        return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except NotRegularError as error:
        reason = f"{error.strerror}. Put the file itself there"
    except TooLargeError as error:
        reason = f"{error.strerror}, which no list of names has"
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    raise LabelsError(f"Cannot read the labels in {file}: {reason}.")


def _from_lines(text: str) -> Labels:
    """A name a line; where every line has its own index before the name or behind it, that is the order."""
    # Not str.splitlines, which also splits at characters that a label may contain.
    lines = [line.rstrip("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    for pattern, number, name in ((_NUMBER_FIRST, 1, 2), (_NUMBER_LAST, 2, 1)):
        matches = [match for line in lines if (match := pattern.fullmatch(line.strip()))]
        if len(matches) == len(lines) > 1:
            named = {int(match[number]): match[name] for match in matches}
            # "1 euro" and "2 euro" are names: without their numbers most of them would be one.
            if _are_all(named, len(lines)) and 2 * len(set(named.values())) > len(lines):
                return tuple(named[index] for index in sorted(named))
    return tuple(lines)


def _are_all(indices: Mapping[int, object], count: int) -> bool:
    """Whether they number `count` lines, from 0 or from 1 up."""
    return len(indices) == count and (set(indices) in (set(range(count)), set(range(1, count + 1))))


def names_by_index(document: object) -> Labels:
    """The names in a list, `{index: name}`, `{index: [id, name]}` or `{name: index}`, or in a member that is one.

    Raises `ValueError` for anything else.
    """
    if isinstance(document, dict):
        member = next((key for key in _MEMBERS if isinstance(document.get(key), dict | list)), None)
        entries = _by_index(document if member is None else document[member])
    else:
        entries = _by_index(document)
    names = [entry[-1] if isinstance(entry, list) and entry else entry for entry in entries]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("no names")
    return tuple(names)


def _by_index(document: Any) -> Sequence[Any]:
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise ValueError("neither a list nor an object")
    indices = [str(index) for index in range(len(document))]
    if all(index in document for index in indices) and not all(type(value) is int for value in document.values()):
        return [document[index] for index in indices]
    by_number = {number: name for name, number in _numbered(document)}
    return [by_number.get(index) for index in range(len(document))]


def _numbered(document: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Names and indices, of `{name: index}`."""
    for name, value in document.items():
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 6:
            yield name, int(value)
        elif type(value) is int:
            yield name, value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _difference(one: Labels, other: Labels) -> str:
    """Where two lists of names differ, for a person."""
    if len(one) != len(other):
        return f"{len(one)} names against {len(other)}"
    index = next(index for index, (first, second) in enumerate(zip(one, other, strict=True)) if first != second)
    return f"class {index} is {one[index][:40]!r} against {other[index][:40]!r}"
