"""Loading's progress, for a person at a terminal."""

from __future__ import annotations

from types import TracebackType

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..opening import LogReporter
from .console import stderr


class TerminalReporter(LogReporter):
    """Loading's progress on a terminal: steps as lines, downloads as a bar; elsewhere as log lines."""

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
