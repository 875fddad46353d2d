"""One model's engine process, seen from the supervisor: started, connected, started again, and ended with its model."""

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

# The third death within five minutes is the last: what two restarts did not cure, a third will not.
_MOST_DEATHS, _WINDOW_SECONDS = 3, 300.0

Live = Callable[
    [str, str, Callable[[Child, Message], None], Callable[[Child], None]], Awaitable[tuple[Child | None, str]]
]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a keeper needs of the supervisor."""

    live: Live
    """Runs a child (role, name, a callback for its messages, one for when it runs) and returns how it ended."""
    pause: Callable[[float], Awaitable[None]]
    """Seconds before a child is started again; a stop ends it."""
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
        """`is_taken` says whether another engine serves a model of this name and version, and goes on to do so.

        `key` is the model's in messages to front-ends, `name` the process's.
        """
        self.key = key
        self.name = name
        self.child: Child | None = None
        self.pairing: Pairing | None = None
        """What the living engine has loaded; None where there is no engine."""
        self.replaces = replaces
        """The model that serves until this one does."""
        self._replaced_key = None if replaces is None else replaces.key
        self.is_default = is_default
        """Whether requests that name no model are this one's."""
        self.is_retiring = False
        self.ready: asyncio.Future[ModelFacts] = asyncio.get_running_loop().create_future()
        """The model, once it has been served; or why it could not be."""
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
        """Of the model that the living engine has loaded."""
        return None if self.pairing is None else self.pairing.facts

    async def keep(self) -> Exception | None:
        """Until the model is retired or the service ends, or with the error for which no restart is a cure."""
        error = await self._keep_alive()
        if not self.ready.done():
            # The caller of `load_model` gets the error; a service that serves another model goes on.
            self.ready.set_exception(error or StartError("The model was unloaded before it served."))
            error = None
        self._is_now(None)
        return error

    def pair(self, front_end: Child) -> None:
        """Connect a front-end to the engine, once that has loaded its model."""
        if self.child is not None and self.pairing is not None:
            is_default = self.is_default or (self.replaces is not None and self.replaces.is_default)
            self.pairing.pair(self.child, front_end, model=self.key, replaces=self._replaced_key, is_default=is_default)

    def retire(self) -> None:
        """No front-end is connected any more, and the process ends when the last of them has left it."""
        self.is_retiring = True
        if self.child is not None:
            self.child.send("retire")

    def _is_now(self, identity: ModelIdentity | None) -> None:
        """The model is another one from now on, or none: the metrics of the last one are removed."""
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
        """One life of the process, None where it could not be started, and how it ended."""
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
