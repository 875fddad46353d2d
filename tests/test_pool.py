"""Models by name and version: leased, swapped, unloaded; none closes under a lease, and each after its last."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batching import DeviceForecast, Schedule
from app.engine import EngineState
from app.errors import DeviceLost
from app.metrics import Metrics
from app.pool import Lease, LoadedModel, ModelConflict, ModelNotFound, Pool, PooledModel
from app.types import ModelIdentity
from tests import virtual_time


class Engine:
    """An engine that knows whether it has been started and closed."""

    def __init__(self) -> None:
        self.starts = 0
        self.closes = 0
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.fault: Exception | None = None
        self.lost: asyncio.Future[DeviceLost] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        await self.may_start.wait()
        if self.fault is not None:
            raise self.fault
        self.starts += 1

    def state(self) -> EngineState:
        return EngineState(bool(self.starts), None, DeviceForecast(0.0, (), 1, 4, 0.1, 0.1))

    async def until_lost(self) -> DeviceLost:
        return await asyncio.shield(self.lost)

    async def close(self) -> None:
        await asyncio.sleep(0.01)
        self.closes += 1


class Bench:
    """A pool, and models for it."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.metrics = Metrics()

    def model(self, name: str = "a", version: str = "1") -> LoadedModel:
        identity = ModelIdentity(name, version)
        return LoadedModel(
            identity=identity,
            preprocessing=cast(Any, None),
            labels=("x", "y"),
            backend="none",
            device="none",
            source="nowhere",
            warnings=(),
            score_count=2,
            engine=cast(Any, Engine()),
            schedule=Schedule(8),
            metrics=self.metrics.of_model(identity),
        )

    async def load(self, model: LoadedModel, replaces: PooledModel | None = None) -> PooledModel:
        async def open_model() -> LoadedModel:
            return model

        return await self.pool.load(open_model, replaces=replaces)

    def series(self) -> list[str]:
        """The labelled series of models that /metrics has."""
        return [line for line in self.metrics.render().decode().splitlines() if "version=" in line]


def engine_of(model: LoadedModel) -> Engine:
    return cast(Engine, model.engine)


def scene(play: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    """Run it in virtual time."""

    async def run() -> None:
        await play(Bench())

    virtual_time.run(run())


async def settle() -> None:
    """Let everything that can run do so."""
    await asyncio.sleep(1.0)


def test_models_are_found_by_name_and_version() -> None:
    """Without a name the default answers, with a name alone its first version, and what is not there is not found."""

    async def play(bench: Bench) -> None:
        pool = bench.pool
        with pytest.raises(ModelNotFound):
            pool.find()
        first = await bench.load(bench.model("a", "1"))
        second = await bench.load(bench.model("a", "2"))
        other = await bench.load(bench.model("b", "1"))
        assert pool.find() is pool.find("a") is pool.find("a", "1") is pool.find(version="1") is first
        assert pool.find("a", "2") is pool.find(version="2") is second
        assert pool.find("b") is pool.find("b", "1") is other
        for name, version in (("c", None), ("b", "2"), ("c", "1"), (None, "3")):
            with pytest.raises(ModelNotFound):
                pool.lease(name, version)
        await pool.unload("a", "1")
        assert pool.find() is pool.find("a") is second
        await pool.unload("a", "2")
        with pytest.raises(ModelNotFound):
            pool.find("a")
        assert pool.default is None
        assert pool.find("b") is other

    scene(play)


def test_a_model_is_served_once_it_is_warm_and_not_before() -> None:
    """While one warms up beside another, the other is leased; the first of all is shown as the default."""

    async def play(bench: Bench) -> None:
        pool, old, new = bench.pool, bench.model("a", "1"), bench.model("a", "2")
        engine_of(old).may_start.clear()
        loading = asyncio.ensure_future(bench.load(old))
        await settle()
        assert pool.default is not None
        assert pool.default.model is old
        with pytest.raises(ModelConflict):
            pool.find("a", "1")
        engine_of(old).may_start.set()
        first = await loading
        engine_of(new).may_start.clear()
        swapping = asyncio.ensure_future(bench.load(new, first))
        await settle()
        with pool.lease() as model:
            assert model is old
        with pytest.raises(ModelConflict):
            pool.find("a", "2")
        engine_of(new).may_start.set()
        await swapping
        with pool.lease() as model:
            assert model is new
        await first.closed
        assert (engine_of(old).closes, engine_of(new).closes) == (1, 0)

    scene(play)


def test_a_model_that_does_not_get_warm_changes_nothing() -> None:
    """The new one is closed, its metrics are gone, and the one that it was to replace serves on."""

    async def play(bench: Bench) -> None:
        first = await bench.load(bench.model("a", "1"))
        before = bench.series()
        new = bench.model("a", "2")
        engine_of(new).fault = DeviceLost("no")
        with pytest.raises(DeviceLost):
            await bench.load(new, first)
        await settle()
        assert bench.pool.find("a") is first
        assert (first.state, engine_of(new).closes) == ("serving", 1)
        assert bench.series() == before

    scene(play)


def test_two_of_one_name_and_version_are_a_conflict_but_for_a_reload() -> None:
    """A second one is refused and closed; as the first one's replacement it is served."""

    async def play(bench: Bench) -> None:
        first = await bench.load(bench.model())
        twin = bench.model()
        with pytest.raises(ModelConflict):
            await bench.load(twin)
        await settle()
        assert (engine_of(twin).closes, engine_of(first.model).closes) == (1, 0)
        lease = bench.pool.lease()
        again = await bench.load(bench.model(), first)
        assert bench.pool.find("a", "1") is again
        # The one that was replaced serves its last request, and both count as the same series.
        assert bench.series()
        assert engine_of(lease.model).closes == 0
        lease.give_back()
        await first.closed
        assert bench.pool.find("a", "1") is again
        assert bench.series()
        with pytest.raises(ModelConflict):
            await bench.load(bench.model("a", "3"), first)

    scene(play)


def test_a_model_that_is_being_unloaded_is_not_leased() -> None:
    """Until its last lease ends it is a conflict to ask for it or to load it again, and then it is not found."""

    async def play(bench: Bench) -> None:
        await bench.load(bench.model("a", "1"))
        other = await bench.load(bench.model("b", "1"))
        lease = bench.pool.lease("b")
        unloading = asyncio.ensure_future(bench.pool.unload("b", "1"))
        await settle()
        assert not unloading.done()
        with pytest.raises(ModelConflict):
            bench.pool.lease("b", "1")
        with pytest.raises(ModelConflict):
            other.lease()
        with pytest.raises(ModelConflict):
            await bench.load(bench.model("b", "1"))
        lease.give_back()
        lease.give_back()
        await unloading
        with pytest.raises(ModelNotFound):
            bench.pool.lease("b", "1")
        await bench.load(bench.model("b", "1"))
        assert not [line for line in bench.series() if 'model="c"' in line]

    scene(play)


def test_a_lost_engine_is_told_unless_its_model_has_been_replaced() -> None:
    """The loss of any engine that serves ends the wait, that of one that was replaced does not."""

    async def play(bench: Bench) -> None:
        first = await bench.load(bench.model("a", "1"))
        waiting = asyncio.ensure_future(bench.pool.until_lost())
        second = await bench.load(bench.model("a", "2"), first)
        engine_of(first.model).lost.set_result(DeviceLost("first"))
        await settle()
        assert not waiting.done()
        engine_of(second.model).lost.set_result(DeviceLost("second"))
        assert str(await waiting) == "second"

    scene(play)


def test_a_leaked_lease_is_noticed_and_does_not_keep_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is dropped without being given back is a ResourceWarning, and its model closes all the same."""
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_value))

    async def play(bench: Bench) -> None:
        pooled = await bench.load(bench.model())
        lease: Lease | None = bench.pool.lease()
        unloading = bench.pool.retire(pooled)
        await settle()
        assert (pooled.leases, told, unloading.done()) == (1, [], False)
        # As where a task is dropped, on another thread too.
        del lease
        await unloading
        assert (pooled.leases, engine_of(pooled.model).closes) == (0, 1)

    scene(play)
    (warning,) = told
    assert isinstance(warning, ResourceWarning)
    assert "version 1, was never given back" in str(warning)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("lease"), st.integers(0, 3)),
        st.tuples(st.just("give back"), st.integers(0, 30)),
        st.tuples(st.just("load"), st.integers(0, 3)),
        st.tuples(st.just("swap"), st.integers(0, 3)),
        st.tuples(st.just("unload"), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.integers(0, 3)),
    ),
    max_size=60,
)
KEYS = (("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"))


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_no_model_closes_under_a_lease_and_each_closes_after_its_last(steps: list[tuple[str, int]]) -> None:
    """In any order of leases, swaps and unloads, a model that was leased is open, and one that has left the pool and
    has no lease is closed, once; at the end no series is left."""

    async def play(bench: Bench) -> None:
        pool = bench.pool
        models: list[LoadedModel] = []
        leases: list[Lease] = []
        given: dict[int, int] = {}

        def check() -> None:
            for model in models:
                assert engine_of(model).closes <= 1
                if given.get(id(model)):
                    assert engine_of(model).closes == 0

        for step, number in steps:
            name, version = KEYS[number % 4]
            try:
                if step == "lease":
                    lease = pool.lease(name, version) if number % 2 else pool.lease(name)
                    assert lease.model.identity.name == name
                    leases.append(lease)
                    given[id(lease.model)] = given.get(id(lease.model), 0) + 1
                elif step == "give back" and leases:
                    lease = leases.pop(number % len(leases))
                    given[id(lease.model)] -= 1
                    lease.give_back()
                elif step == "load":
                    models.append(bench.model(name, version))
                    await bench.load(models[-1])
                elif step == "swap" and pool.default is not None:
                    models.append(bench.model(name, version))
                    await bench.load(models[-1], pool.default)
                elif step == "unload":
                    pool.retire(pool.find(name, version))
                elif step == "wait":
                    await settle()
            except (ModelNotFound, ModelConflict):
                pass
            check()
        await settle()
        check()
        served = {id(each.model) for each in pool._open}
        for model in models:
            assert engine_of(model).closes == (0 if id(model) in served else 1)
            assert (id(model) in served) or not given.get(id(model))
        for lease in leases:
            lease.give_back()
        for each in list(pool._open):
            pool.retire(each)
        await settle()
        assert all(engine_of(model).closes == 1 for model in models)
        assert bench.series() == []
        assert (pool._models, pool._by_name, pool.default, pool._open) == ({}, {}, None, set())

    scene(play)
