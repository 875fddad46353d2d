"""A child of the supervisor, as the supervisor sees it: its process and the channel to it.

    to the engine          start (settings), attach (a front-end's connection and memory), retire, stop
    to a front-end         start (settings), engine (a connection, its memory, the model's facts), retire, signal,
                           failed
    from the engine        step, warn, downloading (progress of loading), loaded (the model's facts), ready, failed
    from a front-end       up (it answers, and can decode), ready (it serves a model)

The channel also reports to each side that the other has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..processes import Need, child_environment, children, command
from ..processes.channel import Channel, Message

# Weights that have to be downloaded are downloaded by the engine.
_NEEDS = {"front-end": Need.COMPUTE, "engine": Need.COMPUTE | Need.GPU | Need.DOWNLOAD}


class Child:
    """A process that runs `app.workers ROLE DESCRIPTOR`."""

    def __init__(self, name: str, process: children.Child, control: Channel) -> None:
        self.name = name
        self.process = process
        self.control = control
        self.is_up = False
        self.is_ready = False
        self.failure: str | None = None
        """Why it ended, if known: from its own report, or the reason why it was killed."""

    @classmethod
    async def start(
        cls,
        role: str,
        name: str,
        on_message: Callable[[Child, Message], None],
        environment: dict[str, str],
    ) -> Child:
        """Start a child, which waits for its `start` message. Raises `OSError` if the system has no room for it."""
        control, theirs = Channel.pair()
        with theirs:
            try:
                process = children.Child(
                    command("app.workers", role, str(theirs.fileno())),
                    child_environment(_NEEDS[role], environment),
                    stdout=children.INHERITED,
                    descriptors=(theirs.fileno(),),
                    # The service's processes share CPU time like the threads of one process.
                    has_own_session=False,
                )
            except BaseException:
                control.close()
                raise
        child = cls(name, process, control)
        control.listen(lambda message: on_message(child, message))
        return child

    async def ended(self) -> str:
        """Wait for its end; returns a description of it: "was killed by SIGKILL (process 12)"."""
        status = await self.process.ended()
        self.control.close()  # delivers the last messages
        how = "was killed by" if status < 0 else "ended with"
        end = f"{how} {children.describe_status(status)} (process {self.process.id})"
        return end + (f": {self.failure}" if self.failure else "")

    def send(self, kind: str, descriptors: Sequence[int] = (), **fields: Any) -> None:
        """Send a message. A child that does not read its messages has hung or ended: it is killed."""
        try:
            self.control.send(kind, descriptors, **fields)
        except OSError:
            self.kill()

    def kill(self, why: str | None = None) -> None:
        self.failure = self.failure or why
        self.process.kill()
