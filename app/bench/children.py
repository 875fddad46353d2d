"""Processes that measure, and how they are told what to do: a JSON object a line, in on stdin and out on stdout.

    parent → child   {"do": "…", …}
    child → parent   {"done": n} now and then, then {"result": …} or {"error": "…"}

What measures runs apart from what reports, so that neither is in the other's figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import StartError
from ..processes import Need, child_environment
from ..processes import command as child_command

_PACKAGE = __name__.partition(".")[0]
_MOST_LINE_BYTES = 1 << 24
_NEWS_SECONDS = 0.2
_STOP_SECONDS = 10.0
# A service may be measured over HTTPS, with a certificate of its own.
NEEDS = Need.COMPUTE | Need.GPU | Need.DOWNLOAD

Handler = Callable[[dict[str, Any], Callable[[int], None]], Any]


def command(module: str, *arguments: str) -> list[str]:
    """A command line that runs a module of this package, of the very code that runs now."""
    return child_command(f"{_PACKAGE}{module}", *arguments)


class Child:
    """A process that answers one command after the other."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log
        self._is_busy = False

    @classmethod
    async def start(cls, name: str, module: str, folder: Path, more: Mapping[str, str] | None = None) -> Child:
        """Run `module` of this package; what it says on stderr is kept in `folder`."""
        log = folder / f"{name}.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *command(module),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env=more if more is not None else child_environment(NEEDS),
                # Ctrl-C is for the run, which ends them in order.
                start_new_session=True,
                limit=_MOST_LINE_BYTES,
            )
        return cls(name, process, log)

    async def ask(self, do: str, on_done: Callable[[int], None] = lambda done: None, **values: Any) -> Any:
        """The command's result. Raises `StartError` with what the child said where it failed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        self._is_busy = True
        try:
            stdin.write(json.dumps({"do": do, **values}).encode() + b"\n")
            await stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended: the end of its output says so below
        while line := await stdout.readline():
            news = json.loads(line)
            self._is_busy = "done" in news
            if "error" in news:
                raise StartError(f"{self.name}: {news['error']}")
            if "result" in news:
                return news["result"]
            on_done(news["done"])
        status = await self._process.wait()
        raise StartError(f"{self.name}: its process ended with status {status}.{last_words(self._log)}")

    async def close(self) -> None:
        """End it: it is done when its stdin ends. A load that nobody waits for would go on: that is killed."""
        assert self._process.stdin is not None
        if self._is_busy and self._process.returncode is None:
            self._process.kill()
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def last_words(log: Path, lines: int = 3) -> str:
    """The end of a process's log, to be told after a sentence; empty where it said nothing."""
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " It said last: " + " | ".join(said[-lines:]) if said else ""


def answer_commands(handlers: Mapping[str, Handler]) -> None:
    """The child's side: until stdin ends."""
    # What others print must not be taken for an answer.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        told = json.loads(line)
        try:
            result = handlers[told.pop("do")](told, _news(out))
        except StartError as error:
            _write(out, {"error": str(error)})
        else:
            _write(out, {"result": result})


def _news(out: Any) -> Callable[[int], None]:
    """Tells how much is done, a few times a second."""
    next_at = time.monotonic() + _NEWS_SECONDS

    def tell(done: int) -> None:
        nonlocal next_at
        now = time.monotonic()
        if now >= next_at:
            next_at = now + _NEWS_SECONDS
            _write(out, {"done": done})

    return tell


def _write(out: Any, document: dict[str, Any]) -> None:
    try:
        out.write(json.dumps(document) + "\n")
        out.flush()
    except BrokenPipeError:
        os._exit(0)  # nobody is left who wants to know
