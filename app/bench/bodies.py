"""The images of a run, in a folder that all its processes read: one file each, and an index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

_INDEX = "index.json"


def write_bodies(folder: Path, bodies: Sequence[bytes], expected: Sequence[Sequence[int] | None] | None = None) -> None:
    """`expected`: for each image the classes with which a right answer begins, if known."""
    folder.mkdir(exist_ok=True)
    names = [f"{number:04}" for number in range(len(bodies))]
    for name, body in zip(names, bodies, strict=True):
        (folder / name).write_bytes(body)
    classes = expected or [None] * len(bodies)
    index = [{"name": name, "expected": each} for name, each in zip(names, classes, strict=True)]
    (folder / _INDEX).write_text(json.dumps(index), encoding="utf-8")


def read_bodies(folder: Path) -> list[tuple[bytes, list[int] | None]]:
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    return [((folder / entry["name"]).read_bytes(), entry["expected"]) for entry in index]
