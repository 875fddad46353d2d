"""The child process that measures the stages of a request alone: decoding, copies to the device, the model.

A process measures one stage at a time. The settings are in its environment, like a server's.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import Backend
from ..decoding import decode_as_served
from ..engine import InProcessEngine
from ..engine.planning import has_room_for_twice, plan_batches
from ..errors import SettingError
from ..images.decoding_messages import document_of, preprocessing_of
from ..loading import load_model
from ..metrics import Metrics
from ..progress import LogReporter
from ..settings import Settings, load_settings
from ..types import Pixels, Preprocessing, Want
from .bodies import read_bodies
from .children import answer_commands
from .pace import repeat


class Measurer:
    """The commands of this process, which share the loaded model and images."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._decode = decode_as_served(settings)
        self._bodies: dict[str, list[bytes]] = {}
        self._backend: Backend | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._images: list[Pixels] = []

    def decode(self, told: dict[str, Any], on_done: Callable[[int], None]) -> dict[str, Any]:
        """{"bodies": folder, "preprocessing": …, "seconds": s}: decode one image at a time, as the service does."""
        bodies = self._read(told["bodies"])
        preprocessing = preprocessing_of(json.dumps(told["preprocessing"]).encode())

        def one(number: int) -> None:
            self._decode(bodies[number % len(bodies)], preprocessing)

        one(0)
        return asdict(repeat(one, 1, told["seconds"]))

    def load(self, told: dict[str, Any], on_done: Callable[[int], None]) -> dict[str, Any]:
        """{"bodies": folder}: load the model of the settings, warm it up, and plan its batches."""
        model = load_model(self._settings, Metrics(), LogReporter())
        if not isinstance(model.engine, InProcessEngine):
            raise SettingError("The bare loop of this engine cannot be measured: it does not run in this process.")
        backend = model.engine.backend
        settings = self._settings
        fixed = None if settings.max_batch_size == "auto" else settings.max_batch_size
        slo = None if settings.slo_p99_ms is None else settings.slo_p99_ms / 1e3
        # The same threads for all calls, as many as in the service: each may hold a slot of the device.
        pool = ThreadPoolExecutor(backend.concurrency)
        plan = pool.submit(
            plan_batches,
            backend.warm_up,
            backend.max_batch_size,
            fixed,
            slo_seconds=slo,
            has_room=has_room_for_twice(backend.device, backend.concurrency),
        ).result()
        self._backend, self._pool = backend, pool
        self._images = self._decoded(told["bodies"], model.preprocessing)
        return {
            "backend": backend.name,
            "device": backend.device,
            "model": model.identity.name,
            "version": model.identity.version,
            "planned_batch": plan.max_batch_size,
            "preprocessing": json.loads(document_of(model.preprocessing)),
        }

    def model(self, told: dict[str, Any], on_done: Callable[[int], None]) -> dict[str, Any]:
        """{"batch": n, "seconds": s, "alone": bool}: the bare loop; unless alone, on all slots of the device."""
        backend, pool, batch = self._backend, self._pool, self._batch(told["batch"])
        assert backend is not None
        assert pool is not None
        barrier = threading.Barrier(backend.concurrency)

        def warm() -> None:
            barrier.wait()
            backend.warm_up(len(batch))

        for each in [pool.submit(warm) for _ in range(backend.concurrency)]:
            each.result()
        # A lone request waits for one call; at the planned batch all slots are busy.
        threads = 1 if told["alone"] else backend.concurrency
        return asdict(repeat(lambda number: _infer(backend, batch), len(batch), told["seconds"], pool, threads))

    def transfer(self, told: dict[str, Any], on_done: Callable[[int], None]) -> dict[str, Any]:
        """{"batch": n, "seconds": s}: copy images into one batch in the memory that the device reads."""
        from ..backends.transfer import batch_copy

        assert self._backend is not None
        copy = batch_copy(self._backend.device, list(self._batch(told["batch"])))
        copy()
        return asdict(repeat(lambda number: copy(), told["batch"], told["seconds"]))

    def _batch(self, size: int) -> Pixels:
        return np.stack([self._images[number % len(self._images)] for number in range(size)])

    def _decoded(self, folder: str, preprocessing: Preprocessing) -> list[Pixels]:
        return [self._decode(body, preprocessing) for body in self._read(folder)[:64]]

    def _read(self, folder: str) -> list[bytes]:
        if folder not in self._bodies:
            self._bodies[folder] = [body for body, _ in read_bodies(Path(folder))]
        return self._bodies[folder]


def _infer(backend: Backend, batch: Pixels) -> None:
    backend.infer(batch, Want.SCORES)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    measurer = Measurer(load_settings())
    answer_commands(
        {
            "decode": measurer.decode,
            "load": measurer.load,
            "model": measurer.model,
            "transfer": measurer.transfer,
        }
    )
    # Do not wait for the device's threads.
    os._exit(0)
