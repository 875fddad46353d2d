"""The pool: models by name and version, and the state of each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ..errors import DeviceLost
from .lease import Lease, PooledModel, describe
from .model import LoadedModel
from .unknown import ModelConflict, ModelNotFound

logger = logging.getLogger(__name__)

OpenModel = Callable[[], Awaitable[LoadedModel]]


class Pool:
    """Holds the models that are served. Belongs to one event loop.

    A model is loaded and warmed up beside those that serve. Then requests lease it: by name and version, by name alone,
    or, if it is the default, without either. A model that is unloaded or replaced gets no new leases; it is closed when
    its last lease has been given back.
    gets no new leases; it is closed when its last lease has been given back.
    """

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], PooledModel] = {}
        # The version of each name that serves requests without a version.
        self._by_name: dict[str, PooledModel] = {}
        self.default: PooledModel | None = None
        """The model for requests that name none; it may still be warming up."""
        # Includes models that were replaced by one of the same name and version.
        self._open: set[PooledModel] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: dict[PooledModel, asyncio.Task[None]] = {}
        self._lost: asyncio.Future[DeviceLost] | None = None

    def find(self, name: str | None = None, version: str | None = None) -> PooledModel:
        """Raises `ModelNotFound`, or `ModelConflict` where the model is being loaded or unloaded."""
        if name is None and version is None:
            if self.default is None:
                raise ModelNotFound("No model is loaded.")
            return self.default
        if name is None and self.default is not None:
            name = self.default.model.identity.name
        found = self._by_name.get(name or "") if version is None else self._models.get((name or "", version))
        if found is None:
            of_version = "" if version is None else f" of version {version}"
            raise ModelNotFound(f"There is no model {name or 'without a name'}{of_version} here.")
        if found.state != "serving":
            raise ModelConflict(
                f"{describe(found.model)} is being {'loaded' if found.state == 'loading' else 'unloaded'}."
            )
        return found

    def lease(self, name: str | None = None, version: str | None = None) -> Lease:
        """A lease of the model, to be given back once. Raises as `find`."""
        return self.find(name, version).lease()

    async def load(
        self,
        open_model: OpenModel,
        *,
        replaces: PooledModel | None = None,
        may_be_default: bool = True,
        on_loaded: Callable[[LoadedModel], None] = lambda model: None,
    ) -> PooledModel:
        """Load a model, warm it up, and serve it from then on.

        The model that it replaces serves until then, and is unloaded; the new one may have the same name and version.
        If there is no default model, it becomes the default (`may_be_default`). `on_loaded` is called between loading
        and warming up. Raises `ModelConflict` if a model of this name and version exists already, and any error of
        `open_model` and of the engine's start; the model is then closed.
        """
        pooled = self._enter(await open_model(), may_be_default)
        try:
            self._check_free(pooled, replaces)
            on_loaded(pooled.model)
            await pooled.model.engine.start()
            self._check_free(pooled, replaces)
        except BaseException:
            self._retire(pooled)
            raise
        self._serve(pooled, replaces)
        return pooled

    def add(self, model: LoadedModel, replaces: PooledModel | None = None) -> PooledModel:
        """Serve a model that has been loaded and warmed up, as `load` does."""
        pooled = self._enter(model, True)
        self._check_free(pooled, replaces)
        self._serve(pooled, replaces)
        return pooled

    def retire(self, pooled: PooledModel) -> asyncio.Future[None]:
        """Give out no new lease of the model, and close it after the last one. The future is done when it is closed."""
        self._retire(pooled)
        return asyncio.shield(pooled.closed)

    async def unload(self, name: str, version: str) -> None:
        """`retire` by name and version; returns when the model is closed. Raises as `find`."""
        await self.retire(self.find(name, version))

    async def until_lost(self) -> DeviceLost:
        """Wait until the engine of a serving model is beyond repair; without such a failure, for ever."""
        if self._lost is None:
            self._lost = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._lost)

    async def close(self) -> None:
        """Close every model, even under a lease: the process is ending."""
        for pooled in list(self._open):
            self._retire(pooled)
            self._close_soon(pooled)
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    # --- states of a model

    def _enter(self, model: LoadedModel, may_be_default: bool) -> PooledModel:
        pooled = PooledModel(model, self._close_soon)
        self._open.add(pooled)
        self._models.setdefault(_key(pooled), pooled)
        if self.default is None and may_be_default:
            self.default = pooled
        return pooled

    def _check_free(self, pooled: PooledModel, replaces: PooledModel | None) -> None:
        holder = self._models.get(_key(pooled), pooled)
        if holder is not pooled and holder is not replaces:
            raise ModelConflict(f"{describe(pooled.model)} is there already.")
        if replaces is not None and replaces.state == "unloading":
            raise ModelConflict(f"{describe(replaces.model)} is being unloaded already.")

    def _serve(self, pooled: PooledModel, replaces: PooledModel | None) -> None:
        model = pooled.model
        model.metrics.watch(model.metrics.reservations, lambda: model.schedule.held)
        model.metrics.watch(model.metrics.predicted_wait, model.predicted_wait_seconds)
        pooled.state = "serving"
        self._models[_key(pooled)] = pooled
        holder = self._by_name.get(model.identity.name)
        if holder is None or holder is replaces:
            self._by_name[model.identity.name] = pooled
        if self.default is not None and self.default is replaces:
            self.default = pooled
        self._watching[pooled] = asyncio.get_running_loop().create_task(self._watch(pooled))
        if replaces is not None:
            self._retire(replaces)

    def _retire(self, pooled: PooledModel) -> None:
        if pooled.state == "unloading":
            return
        pooled.state = "unloading"
        if (watching := self._watching.pop(pooled, None)) is not None:
            watching.cancel()
        name = pooled.model.identity.name
        if self._by_name.get(name) is pooled:
            del self._by_name[name]
            others = [each for each in self._models.values() if each.model.identity.name == name]
            if serving := [each for each in others if each.state == "serving"]:
                self._by_name[name] = serving[-1]
        if self.default is pooled:
            self.default = self._by_name.get(name)
        if not pooled.leases:
            self._close_soon(pooled)

    def _close_soon(self, pooled: PooledModel) -> None:
        if pooled in self._open:
            self._open.discard(pooled)
            task = asyncio.get_running_loop().create_task(self._close(pooled))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _close(self, pooled: PooledModel) -> None:
        try:
            await pooled.model.close()
        except Exception:
            logger.exception("%s could not be closed in good order.", describe(pooled.model))
        finally:
            if self._models.get(_key(pooled)) is pooled:
                del self._models[_key(pooled)]
            if not pooled.closed.done():
                pooled.closed.set_result(None)

    async def _watch(self, pooled: PooledModel) -> None:
        lost = await pooled.model.engine.until_lost()
        if self._lost is None:
            self._lost = asyncio.get_running_loop().create_future()
        if not self._lost.done():
            self._lost.set_result(lost)


def _key(pooled: PooledModel) -> tuple[str, str]:
    identity = pooled.model.identity
    return identity.name, identity.version
