"""What became of one request: whether it was answered, rightly, and what the answer says of its stages."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STAGES = ("decode", "queue", "inference")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_TIMING = re.compile(rb"\r\nserver-timing: *([^\r]*)", re.IGNORECASE)
_BATCH = re.compile(rb"\r\nx-batch-size: *(\d+)", re.IGNORECASE)
_STAGE = re.compile(rb"(decode|queue|inference);dur=(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's outcome: a status, or an `error` where none came."""

    status: int | None
    error: str | None = None
    """What the connection failed with: "refused", "reset", "closed", …"""
    code: str | None = None
    """Of a problem, its code."""
    is_wrong: bool = False
    """A 200 that is no prediction, or not the one it should be."""
    stages_ms: tuple[float, ...] = ()
    """As `STAGES`; empty where the answer does not say."""
    batch_size: int | None = None

    @property
    def is_good(self) -> bool:
        return self.status == 200 and not self.is_wrong


@dataclass(frozen=True, slots=True)
class Head:
    """The part of an answer's head that the connection needs."""

    status: int
    length: int
    closes: bool


def parse_head(head: bytes) -> Head:
    """Raises `ValueError` for what is no HTTP/1.1 answer of a known length; this service gives no other."""
    if head[:7] != b"HTTP/1." or not head[9:12].isdigit():
        raise ValueError("not HTTP")
    length = _LENGTH.search(head)
    if length is None:
        raise ValueError("no content-length")
    return Head(int(head[9:12]), int(length[1]), _CLOSE.search(head) is not None)


def read_answer(head: bytes, status: int, body: bytes, expected: Sequence[int] | None) -> Answer:
    """`expected`, where it is known, are the best classes that a right answer begins with."""
    if status != 200:
        return Answer(status, code=_code(body))
    timing, batch = _TIMING.search(head), _BATCH.search(head)
    found = {name.decode(): float(ms) for name, ms in _STAGE.findall(timing[1])} if timing else {}
    return Answer(
        200,
        is_wrong=not _is_right(body, expected),
        stages_ms=tuple(found[name] for name in STAGES) if len(found) == len(STAGES) else (),
        batch_size=int(batch[1]) if batch else None,
    )


def classes_of(body: bytes) -> list[int]:
    """The classes of a prediction, best first. Raises `ValueError` for a body that is none."""
    try:
        predictions: list[dict[str, Any]] = json.loads(body)["predictions"]
        classes = [each["class_id"] for each in predictions]
        probabilities = [each["probability"] for each in predictions]
    except (TypeError, KeyError) as error:
        raise ValueError("not a prediction") from error
    if not classes or not all(isinstance(each, int) for each in classes):
        raise ValueError("not a prediction")
    if not all(isinstance(each, float | int) and 0 <= each <= 1 for each in probabilities):
        raise ValueError("not a prediction")
    return classes


def _is_right(body: bytes, expected: Sequence[int] | None) -> bool:
    try:
        classes = classes_of(body)
    except ValueError:
        return False
    return expected is None or classes[: len(expected)] == list(expected)


def _code(body: bytes) -> str | None:
    try:
        code = json.loads(body)["code"]
    except (ValueError, TypeError, KeyError):
        return None
    return code if isinstance(code, str) else None
