"""One model's engine process, as the supervisor sees it: started, connected, restarted, and ended with its model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import DeviceLost, StartError
from ..metrics import SharedFiles
from ..pool import ModelFacts
from ..processes.channel import Message
from ..progress import Reporter, report
from ..settings import Settings
from ..types import ModelIdentity
from .child import Child
from .pairing import Pairing
from .restarts import Restarts

logger = logging.getLogger(__name__)

# The third death within five minutes ends it: if two restarts did not help, a third will not.
_MOST_DEATHS, _WINDOW_SECONDS = 3, 300.0

Live = Callable[
    [str, str, Callable[[Child, Message], None], Callable[[Child], None]], Awaitable[tuple[Child | None, str]]
]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The functions and facts of the supervisor that a keeper needs."""

    live: Live
    """Runs a child (role, name, a callback for its messages, one for when it has started); returns how it ended."""
    pause: Callable[[float], Awaitable[None]]
    """Waits before a child is restarted; a stop ends the wait."""
    is_stopping: Callable[[], bool]
    fail: Callable[[Exception], None]
    """End the service."""
    front_ends: Callable[[], Iterable[Child]]
    reporter: Reporter
    metrics_folder: Path
    log_lock: int


class EngineKeeper:
    """Keeps one model served. Belongs to the supervisor's event loop."""

    def __init__(
        self,
        surroundings: Surroundings,
        is_taken: Callable[[EngineKeeper, ModelIdentity], bool],
        key: int,
        name: str,
        settings: Settings,
        replaces: EngineKeeper | None,
        is_default: bool,
    ) -> None:
        """`is_taken` returns whether another engine serves a model of this name and version, and will continue to.

        `key` names the model in messages to front-ends, `name` names the process.
        """
        self.key = key
        self.name = name
        self.child: Child | None = None
        self.pairing: Pairing | None = None
        """The facts and connections of the running engine; None if no engine is running."""
        self.replaces = replaces
        """The keeper of the model that serves until this one does."""
        self._replaced_key = None if replaces is None else replaces.key
        self.is_default = is_default
        """Whether this model answers requests that name none."""
        self.is_retiring = False
        self.ready: asyncio.Future[ModelFacts] = asyncio.get_running_loop().create_future()
        """The model's facts when it serves, or the error of its first start."""
        self._identity: ModelIdentity | None = None
        self._surroundings = surroundings
        self._is_taken = is_taken
        self._settings = settings
        self._files = SharedFiles(surroundings.metrics_folder, name)

    @property
    def is_ready(self) -> bool:
        return self.child is not None and self.child.is_ready

    @property
    def facts(self) -> ModelFacts | None:
        """The facts of the model that the running engine has loaded."""
        return None if self.pairing is None else self.pairing.facts

    async def keep(self) -> Exception | None:
        """Run until the model is retired or the service ends; returns the error that no restart can fix, if any."""
        error = await self._keep_alive()
        if not self.ready.done():
            # The caller of `load_model` gets the error; the service continues with its other models.
            self.ready.set_exception(error or StartError("The model was unloaded before it served."))
            error = None
        self._is_now(None)
        return error

    def pair(self, front_end: Child) -> None:
        """Connect a front-end to the engine, if the engine has loaded its model."""
        if self.child is not None and self.pairing is not None:
            is_default = self.is_default or (self.replaces is not None and self.replaces.is_default)
            self.pairing.pair(self.child, front_end, model=self.key, replaces=self._replaced_key, is_default=is_default)

    def retire(self) -> None:
        """Connect no further front-ends; the process ends when the last of them has disconnected."""
        self.is_retiring = True
        if self.child is not None:
            self.child.send("retire")

    def _is_now(self, identity: ModelIdentity | None) -> None:
        """The served model has changed, or there is none: remove the metrics of the last one."""
        last, self._identity = self._identity, identity
        if last is not None and last != identity and not self._is_taken(self, last):
            self._files.remove_model(last)

    async def _keep_alive(self) -> Exception | None:
        around = self._surroundings
        deaths = Restarts(_MOST_DEATHS, _WINDOW_SECONDS, 0.5)
        while not around.is_stopping() and not self.is_retiring:
            child, how = await self._live()
            self._files.forget_gauges()
            if around.is_stopping() or self.is_retiring:
                return None
            if child is not None and child.failure is not None and not self.ready.done():
                return StartError(child.failure)
            delay = deaths.died()
            if delay is None:
                return DeviceLost(
                    f"The model's process has ended {_MOST_DEATHS} times within {_WINDOW_SECONDS / 60:.0f} minutes; "
                    f"the last one {how}. To start it again is no cure"
                )
            logger.error("The model's process %s. It is started again in %.1f s.", how, delay)
            await around.pause(delay)
        return None

    async def _live(self) -> tuple[Child | None, str]:
        """Run the process once; returns it, or None if it could not be started, and how it ended."""
        try:
            pairing = Pairing()
        except OSError as error:
            return None, f"could not be started ({error.strerror or error})"
        with pairing:
            self.pairing = pairing
            try:
                return await self._surroundings.live("engine", self.name, self._on_message, self._begin)
            finally:
                self.child = self.pairing = None

    def _begin(self, child: Child) -> None:
        self.child = child
        if self._surroundings.is_stopping():
            child.send("stop")
            return
        assert self.pairing is not None
        descriptors = [self.pairing.board_descriptor, self._surroundings.log_lock]
        child.send("start", descriptors, name=child.name, settings=self._settings.model_dump_json())
        if self.is_retiring:
            child.send("retire")

    def _on_message(self, child: Child, message: Message) -> None:
        if report(message, self._surroundings.reporter):
            return
        if message.kind == "loaded":
            self._has_loaded(child, message)
        elif message.kind == "ready":
            child.is_ready = True
            if not self.ready.done() and (facts := self.facts) is not None:
                self.ready.set_result(facts)
        elif message.kind == "failed":
            child.failure = message.fields["error"]

    def _has_loaded(self, child: Child, message: Message) -> None:
        assert self.pairing is not None
        self.pairing.has_loaded(message)
        facts = self.pairing.facts
        assert facts is not None
        self._is_now(facts.identity)
        if self._is_taken(self, facts.identity):
            child.kill(f"A model {facts.identity.name} of version {facts.identity.version} is served already.")
        elif not self.is_retiring:
            for front_end in self._surroundings.front_ends():
                self.pair(front_end)
