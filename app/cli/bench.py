"""resnet-serve bench"""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar

from ..errors import SettingError
from ..logs import set_up_logging
from ..settings import Settings
from .console import stderr, stdout
from .options import with_settings

T = TypeVar("T")

_FILE_COLUMNS = 130


def bench(
    serve_flags: Annotated[
        list[str] | None,
        typer.Argument(help="Flags of `serve` for the server that is started, after --.", metavar="[-- SERVE FLAGS]"),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Measure the service at this address instead of starting one.", metavar="URL")
    ] = None,
    photos: Annotated[
        Path | None, typer.Option(help="A folder of photos to send. Unset: photos that are at hand, or synthetic ones.")
    ] = None,
    p99_ms: Annotated[float, typer.Option(min=0.1, help="Target: 99 of 100 requests answered within it.")] = 500.0,
    clients: Annotated[int, typer.Option(min=1, help="Clients of the closed loop.")] = 16,
    arrivals: Annotated[
        Literal["poisson", "steady"],
        typer.Option(help="Of the open loop: independent of each other, or evenly spaced."),
    ] = "poisson",
    quick: Annotated[bool, typer.Option("--quick", help="Some 20 seconds; the figures are hints.")] = False,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="Soak: a closed loop of so many requests, and whether the server grows over it."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.05, help="Length of each measurement. [default: 5; quick 1]")
    ] = None,
    step_requests: Annotated[
        int | None,
        typer.Option(
            min=10, help="Fewest requests of an open-loop step. [default: 500, or what 90 s hold; quick 40, or 4 s]"
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often all is measured. [default: 3; quick 1]")] = None,
    wait_seconds: Annotated[float, typer.Option(min=0, help="How long the service may take to be ready.")] = 300.0,
    output: Annotated[
        Path, typer.Option(help="The report's file; the picture is beside it, as .png.", metavar="FILE.json")
    ] = Path("bench.json"),
    picture: Annotated[bool, typer.Option("--picture/--no-picture", help="Draw the report.")] = True,
) -> None:
    """Measure a service: throughput, latency under load, each part alone, and how close that is to what is possible.

    Without --url a server is started for it: `resnet-serve bench -- --backend null --max-batch-size 8`. Exit 1 where
    answers were wrong, or where the server grew in a soak.
    """
    from ..bench.picture import check_matplotlib, draw_report
    from ..bench.plan import plan_run
    from ..bench.report import check_writable, write_report
    from ..bench.run import run
    from ..bench.target import parse_target
    from ..bench.text import render

    set_up_logging("warning")
    if url is not None and serve_flags:
        raise SettingError("--url names a service that runs already: flags after -- are for one that bench starts.")
    settings = _settings(serve_flags or [])
    target = None if url is None else parse_target(url)
    check_writable(output)
    drawing = output.with_suffix(".png")
    if picture:
        check_matplotlib()
    plan = plan_run(
        quick=quick,
        p99_ms=p99_ms,
        clients=clients,
        arrivals=arrivals,
        seconds=seconds,
        step_requests=step_requests,
        rounds=rounds,
        soak_requests=requests,
        wait_seconds=wait_seconds,
    )
    with _TerminalProgress() as progress:
        try:
            report = asyncio.run(_until_told(run(plan, settings, target, photos, progress, _command())))
        except _Told as told:
            raise typer.Exit(128 + told.signal_number) from None
    write_report(report, output)
    written = [str(output)]
    if picture:
        with stderr.status("Drawing …"):
            draw_report(report, drawing)
        written.append(str(drawing))
    if not stdout.is_terminal:
        # A file or a pipe has no width, and the default of 80 columns would cut the table of loads.
        stdout.width = max(stdout.width, _FILE_COLUMNS)
    stdout.print(render(report))
    stdout.print(f"Written: {', '.join(written)}", markup=False)
    if report.failures:
        raise typer.Exit(1)


class _Told(Exception):
    """A signal ended the run."""

    def __init__(self, signal_number: signal.Signals) -> None:
        self.signal_number = signal_number


async def _until_told(work: Coroutine[Any, Any, T]) -> T:
    """The work's result. SIGTERM, and SIGHUP when the terminal closes, end it like Ctrl-C: the processes started for it
    are ended first. Raises `_Told`.
    """
    task = asyncio.ensure_future(work)
    told: list[signal.Signals] = []

    def end(signal_number: signal.Signals) -> None:
        told.append(signal_number)
        task.cancel()

    # Under nohup the terminal may close without ending the run.
    is_held = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    for each in (signal.SIGTERM, *(() if is_held else (signal.SIGHUP,))):
        asyncio.get_running_loop().add_signal_handler(each, end, each)
    try:
        return await task
    except asyncio.CancelledError:
        if told:
            raise _Told(told[0]) from None
        raise


def _settings(flags: list[str]) -> Settings:
    """The settings that `serve` would have with these flags, with the same errors for wrong ones."""
    found: list[Settings] = []

    def take(settings: Settings) -> None:
        found.append(settings)

    serve = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    serve.command("serve")(with_settings(take))
    typer.main.get_command(serve).main(flags, prog_name="resnet-serve serve", standalone_mode=False)
    if not found:
        raise typer.Exit  # the flags asked for help
    return found[0]


def _command() -> str:
    return shlex.join(["resnet-serve", *sys.argv[1:]])


class _TimeBar(ProgressColumn):
    """The share of the measurement's time that has passed, or of its requests if they are counted."""

    def render(self, task: Task) -> ProgressBar:
        done = task.completed or task.elapsed or 0.0
        total = task.total
        return ProgressBar(total=total, completed=min(done, total or 0.0), width=24, pulse=total is None)


class _TerminalProgress:
    """The current measurement as a bar and results as lines; without a terminal, lines only."""

    def __init__(self) -> None:
        # Few refreshes, because the display shares its CPUs with the measurement.
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            _TimeBar(),
            TimeElapsedColumn(),
            console=stderr,
            refresh_per_second=4,
            transient=True,
        )
        self._text = ""
        self._is_counted = False
        self._began = time.monotonic()

    def __enter__(self) -> _TerminalProgress:
        if stderr.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, text: str, seconds: float | None = None, total: int | None = None) -> None:
        self._text = text
        # A bar of seconds advances by itself: finished requests must not be added to it.
        self._is_counted = total is not None
        self._bars.add_task(text, total=total or seconds)

    def done(self, requests: int) -> None:
        for task in self._bars.task_ids:
            if self._is_counted:
                self._bars.update(task, completed=requests)

    def end(self, found: str) -> None:
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        told = f": {found}" if found else ""
        stderr.print(f"{time.monotonic() - self._began:6.1f} s  {self._text}{told}", markup=False)
