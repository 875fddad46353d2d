"""The parent's side of a child process: start it in its own process group, wait for its end, kill it and its group.

The only module that starts processes. `start.py` builds command lines, `environment.py` environments.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

INHERITED = None
NOTHING = subprocess.DEVNULL
PIPE = subprocess.PIPE
WITH_STDOUT = subprocess.STDOUT

Stream = int | IO[bytes] | None
"""One of the above, a descriptor, or an open file."""


class Child:
    """A child process. Ctrl-C on a terminal does not reach it: its parent receives the signal and ends its children."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdin: Stream = NOTHING,
        stdout: Stream = NOTHING,
        stderr: Stream = INHERITED,
        descriptors: Sequence[int] = (),
        folder: str | os.PathLike[str] | None = None,
        has_own_session: bool = True,
    ) -> None:
        """Start `command`. The child has `descriptors` under the same numbers. Raises `OSError`.

        Linux's autogroup scheduling divides CPU time between sessions, and within a session between its processes. A
        child without its own session still has its own process group.
        """
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=descriptors,
            cwd=folder,
            start_new_session=has_own_session,
            process_group=None if has_own_session else 0,
        )
        self.id = self._process.pid

    @property
    def stdout(self) -> IO[bytes]:
        """The read end of standard output, if that is a pipe."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def stderr(self) -> IO[bytes]:
        assert self._process.stderr is not None
        return self._process.stderr

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def send_signal(self, number: int) -> None:
        """Send a signal to the child's process group, unless the child has ended."""
        # After its end, the number may belong to another process.
        if not self.has_ended:
            self._signal_group(number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """Kill the child and its process group, even if the child has just ended and left processes behind."""
        # While the group has a member, its number is not reused.
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.id, number)

    def wait(self, at_most_seconds: float | None = None) -> int:
        """The exit status, negative for a signal. A child that does not end in time is killed. Blocks."""
        try:
            return self._process.wait(at_most_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    async def ended(self) -> int:
        """The exit status when the child has ended; several tasks may wait."""
        loop = asyncio.get_running_loop()
        status: asyncio.Future[int] = loop.create_future()

        def settle(value: int) -> None:
            if not status.done():
                status.set_result(value)

        def wait() -> None:
            value = self._process.wait()
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(settle, value)

        # A separate thread: such waits could occupy all threads of the executor.
        threading.Thread(target=wait, name=f"wait-{self.id}", daemon=True).start()
        return await status


def describe_status(status: int) -> str:
    """An exit status in words: "exit status 1", "SIGKILL"."""
    if status >= 0:
        return f"exit status {status}"
    with suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
