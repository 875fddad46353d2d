"""The outcome of one request: status or error, right or wrong, and the times of its stages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

STAGES = ("decode", "queue", "inference")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_TIMING = re.compile(rb"\r\nserver-timing: *([^\r]*)", re.IGNORECASE)
_BATCH = re.compile(rb"\r\nx-batch-size: *(\d+)", re.IGNORECASE)
_STAGE = re.compile(rb"(decode|queue|inference);dur=(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's outcome: a status, or an `error` if no answer came."""

    status: int | None
    error: str | None = None
    """How the connection failed: "refused", "reset", "closed", …"""
    code: str | None = None
    """The code of a problem."""
    is_wrong: bool = False
    """A 200 without a prediction, or with the prediction for another image."""
    stages_ms: tuple[float, ...] = ()
    """In the order of `STAGES`; empty if the answer has no Server-Timing."""
    batch_size: int | None = None

    @property
    def is_good(self) -> bool:
        return self.status == 200 and not self.is_wrong


@dataclass(frozen=True, slots=True)
class Head:
    """The part of an answer's head that the connection needs."""

    status: int
    length: int | None
    """Bytes of the body; None for a chunked one."""
    closes: bool


def parse_head(head: bytes) -> Head:
    """Raises `ValueError` if it is not HTTP/1, or does not specify the body's end."""
    if head[:7] != b"HTTP/1." or not head[9:12].isdigit():
        raise ValueError("not HTTP")
    length = _LENGTH.search(head)
    if length is None and _CHUNKED.search(head) is None:
        raise ValueError("no content-length")
    return Head(int(head[9:12]), int(length[1]) if length else None, _CLOSE.search(head) is not None)


Read = Callable[[bytes, int, bytes, Sequence[int] | None], Answer]
"""Head, status, body and the expected classes of one answer → its outcome."""


def read_status(head: bytes, status: int, body: bytes, expected: Sequence[int] | None) -> Answer:
    """Reads only the status: costs the generator least, and works with any server."""
    return Answer(status)


def read_answer(head: bytes, status: int, body: bytes, expected: Sequence[int] | None) -> Answer:
    """`expected`: the classes with which a right answer begins, if known."""
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
    """The classes of a prediction, best first. Raises `ValueError` if the body is not one."""
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
