"""A checkpoint file read and decided, for tests that look at both steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.checkpoints import (
    Checkpoint,
    CheckpointFile,
    Contents,
    Decision,
    Decisions,
    Found,
    decide,
    read,
)
from app.settings import CheckpointSettings


@dataclass(frozen=True)
class Examined:
    contents: Contents
    checkpoint: Checkpoint

    @property
    def path(self) -> Path:
        return self.contents.path

    @property
    def decisions(self) -> Decisions:
        assert self.checkpoint.decisions is not None
        return self.checkpoint.decisions

    @property
    def labels(self) -> Decision[tuple[str, ...]]:
        return self.decisions.labels

    @property
    def class_count(self) -> int:
        return self.checkpoint.class_count

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.checkpoint.warnings

    @property
    def notes(self) -> tuple[str, ...]:
        return self.checkpoint.notes


def examine(settings: CheckpointSettings, path: Path) -> Examined:
    """Raises a `StartError`."""
    contents = read(Found(CheckpointFile(path)), settings)
    return Examined(contents, decide(contents, settings))
