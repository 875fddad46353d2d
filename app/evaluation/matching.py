"""Class names of folders and tables → class indices of the model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..errors import EvaluationError
from .photos import Found, some

# WordNet's ids, the names of ImageNet's folders; in sorted order they are the classes in theirs.
_WNID = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"^(?:n\d{8}|\d+)[\s._-]+(?=\S)")
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Matched:
    """The class of each written name."""

    classes: dict[str, tuple[int, ...]]
    """Indices in the model's order; several if the name lists several labels."""
    unmatched: tuple[str, ...]
    labels: tuple[str, ...]
    """The model's labels, or the folders' names if the model's are unknown."""
    note: str = ""
    """A note for the user on the matching."""


def match_classes(found: Found, labels: tuple[str, ...]) -> Matched:
    """Match the written names with the model's `labels`: by label, by index, by spelling, by first synonym.

    If no name matches, and there are as many names as classes, the names in sorted order are taken as the labels, as
    torchvision's ImageFolder and Keras's image_dataset_from_directory number them. Raises `EvaluationError` if no name
    matches otherwise.
    """
    written = found.written
    wnids = sorted(name for name in written if _WNID.fullmatch(name))
    if len(wnids) == _IMAGENET_CLASSES and len(labels) - _IMAGENET_CLASSES in (0, 1):
        first = len(labels) - _IMAGENET_CLASSES
        return Matched({name: (first + at,) for at, name in enumerate(wnids)}, (), labels, "by their WordNet ids")
    look_up = _Labels(labels)
    classes: dict[str, tuple[int, ...]] = {}
    for name in written:
        indices = look_up.find_all(name)
        if indices:
            classes[name] = indices
    unmatched = tuple(name for name in written if name not in classes)
    if classes:
        return Matched(classes, unmatched, labels)
    if len(written) == len(labels):
        return Matched(
            {name: (at,) for at, name in enumerate(written)},
            (),
            written,
            f"None of the classes that the photos are sorted into ({some(written)}) is a label of the model "
            f"({some(labels)}), but they are as many: their order by name is assumed to be the model's.",
        )
    raise EvaluationError(
        f"None of the {len(written)} classes that the photos are sorted into ({some(written)}) is one of the model's "
        f"{len(labels)} ({some(labels)}). Call the folders by label or by index, or name a labels file with --labels."
    )


def count_unmatched(found: Found, matched: Matched) -> Counter[str]:
    """The number of photos for each name that is not a class of the model."""
    return Counter(name for photo in found.photos for name in photo.written if name not in matched.classes)


class _Labels:
    """Finds the model's labels by every spelling that identifies one of them."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._count = len(labels)
        self._ways: list[tuple[Callable[[str], str], dict[str, int]]] = [
            (str, _unique(labels, str)),
            (_plain, _unique(labels, _plain)),
            (_first_synonym, _unique(labels, _first_synonym)),
            (_without_number, _unique(labels, _plain)),
            (_without_number, _unique(labels, _first_synonym)),
        ]

    def find_all(self, name: str) -> tuple[int, ...]:
        """The class named `name`, or the classes if it is a list of names; () if one of them is unknown."""
        one = self.find(name)
        if one is not None:
            return (one,)
        parts = [part.strip() for part in re.split(r"[|;]", name)]
        several = [self.find(part) for part in parts if part]
        known = tuple(dict.fromkeys(index for index in several if index is not None))
        return known if len(several) > 1 and None not in several else ()

    def find(self, name: str) -> int | None:
        exact = self._ways[0][1].get(name)
        if exact is not None:
            return exact
        if name.isascii() and name.isdecimal():
            return int(name) if int(name) < self._count else None
        for spell, known in self._ways[1:]:
            index = known.get(spell(name))
            if index is not None:
                return index
        return None


def _unique(labels: Iterable[str], spell: Callable[[str], str]) -> dict[str, int]:
    """The index of each spelling that only one label has; shared spellings are left out."""
    spelt = [spell(label) for label in labels]
    counts = Counter(spelt)
    return {each: at for at, each in enumerate(spelt) if each and counts[each] == 1}


def _plain(name: str) -> str:
    """The name in lower case, with one space between words."""
    return re.sub(r"[\s_\-./]+", " ", name.casefold()).strip()


def _first_synonym(name: str) -> str:
    """ "tench, Tinca tinca" → "tench"."""
    return _plain(name.partition(",")[0])


def _without_number(name: str) -> str:
    """ "n01514668_cock" and "7-cock" → "cock"."""
    return _plain(_NUMBERED.sub("", name))
