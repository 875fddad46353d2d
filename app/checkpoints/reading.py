"""The second step of a checkpoint's road, and all three in order: find → read → decide."""

from __future__ import annotations

from collections.abc import Callable

from ..progress import Reporter
from ..settings import CheckpointSettings
from .base import Checkpoint, Contents, Decision, Told
from .deciding import decide
from .finding import Found, find
from .locate import CheckpointFile
from .offline_demo import ARCHITECTURE, PREPROCESSING, read_offline_demo
from .readers import read_checkpoint

_DEMO = "the offline demo"


def read(found: Found, settings: CheckpointSettings) -> Contents:
    """The contents of the weights that were found. Raises `CheckpointError` in one line. Blocks."""
    if isinstance(found.source, CheckpointFile):
        return read_checkpoint(found.source.path, settings.max_checkpoint_bytes, settings.onnx_output)
    weights, sha256, path = read_offline_demo()
    return Contents(
        path=path,
        weights=weights,
        sha256=sha256,
        container="torch zip",
        family=_DEMO,
        told=Told(architecture=Decision(ARCHITECTURE, _DEMO), preprocessing=Decision(PREPROCESSING, _DEMO)),
        is_offline_demo=True,
        fallback_warning=found.fallback_warning,
    )


def read_and_decide(found: Found, settings: CheckpointSettings, reporter: Reporter) -> Checkpoint:
    """The checkpoint that was found. Raises a `StartError` with the cause and a remedy. Blocks."""
    what = found.source.path if isinstance(found.source, CheckpointFile) else _DEMO
    reporter.step(f"Reading {what}")
    return decide(read(found, settings), settings)


def open_checkpoint(settings: CheckpointSettings, reporter: Reporter, is_cancelled: Callable[[], bool]) -> Checkpoint:
    """The checkpoint that the settings name, or the fallback if the settings allow one.

    Raises a `StartError` with the cause and a remedy. Blocks.
    """
    return read_and_decide(find(settings, reporter, is_cancelled), settings, reporter)
