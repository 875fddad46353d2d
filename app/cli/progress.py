"""Progress bars and lines on a terminal, for loading and for work in steps."""

from __future__ import annotations

import logging
from types import TracebackType

from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..progress import LogReporter
from .console import stderr

logger = logging.getLogger(__name__)


class TerminalReporter(LogReporter):
    """Progress of loading: on a terminal steps as lines and downloads as a bar, elsewhere log lines."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def step(self, text: str) -> None:
        self._end_bar()
        super().step(text)

    def warn(self, text: str) -> None:
        self._end_bar()
        super().warn(text)

    def downloading(self, name: str, received: int, expected: int | None) -> None:
        if not stderr.is_terminal:
            super().downloading(name, received, expected)
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("Downloading {task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=stderr,
            )
            self._task = self._bar.add_task(name, total=expected)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=received)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class StepBar:
    """Progress of long work: on a terminal a bar for each step, elsewhere a log line when a step begins."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""

    def __enter__(self) -> StepBar:
        if stderr.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[detail]}"),
                console=stderr,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` of the step `what`; `detail` names the current part of it."""
        begins = what != self._what
        self._what = what
        if self._bar is None:
            if begins:
                logger.info("%s …", what)
            return
        if begins or self._task is None:
            self._task = self._bar.add_task(what, total=total, detail="")
        self._bar.update(self._task, completed=done, total=total, detail=escape(detail))
