"""A child of the supervisor, seen from there."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ..processes import Need, child_environment, command
from .control import Control, Message

# The engine downloads the weights, if anybody does.
_NEEDS = {"front-end": Need.COMPUTE, "engine": Need.COMPUTE | Need.GPU | Need.DOWNLOAD}


class Child:
    """A process of this package's: `python -m app.workers ROLE DESCRIPTOR`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, control: Control) -> None:
        self.name = name
        self.process = process
        self.control = control
        self.is_up = False
        self.is_ready = False
        self.failure: str | None = None
        """Why it ends, where that is known: as it says of itself, or why it was killed."""

    @classmethod
    async def start(
        cls,
        role: str,
        name: str,
        on_message: Callable[[Child, Message], None],
        environment: dict[str, str],
    ) -> Child:
        """Start one, which waits for its `start` message. Raises `OSError` where the system has no room for it."""
        control, theirs = Control.pair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command("app.workers", role, str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=child_environment(_NEEDS[role], environment),
                    # Ctrl-C on a terminal is for the supervisor, which tells the others.
                    process_group=0,
                )
            except BaseException:
                control.close()
                raise
        child = cls(name, process, control)
        control.listen(lambda message: on_message(child, message))
        return child

    async def ended(self) -> str:
        """Wait for its end; how it ended, for a person: "was killed by SIGKILL (process 12)"."""
        status = await self.process.wait()
        self.control.close()  # reads what it said last
        how = f"ended with exit status {status}"
        if status < 0:
            with suppress(ValueError):
                how = f"was killed by {signal.Signals(-status).name}"
        return f"{how} (process {self.process.pid})" + (f": {self.failure}" if self.failure else "")

    def send(self, kind: str, descriptors: Sequence[int] = (), **fields: Any) -> None:
        """A message. One that does not read its messages is killed: it has hung, or ended."""
        try:
            self.control.send(kind, descriptors, **fields)
        except OSError:
            self.kill()

    def kill(self, why: str | None = None) -> None:
        self.failure = self.failure or why
        with suppress(ProcessLookupError):
            self.process.kill()
