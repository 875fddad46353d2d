"""What the CUDA side of the device contract asks of PyTorch, with stand-ins for `torch.cuda` that check and record.

They compute nothing; whether a card does what it is asked is for tests/gpu to show.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import app.backends.torch.cuda as border
from app.backends.torch.cuda import CudaDevice
from app.backends.torch.forward import Forward
from app.backends.torch.slots import Slot
from app.checkpoints import published_resnet50_preprocessing
from app.types import Preprocessing

SIZE = (4, 4)
CARD = torch.device("cuda", 0)
REAL_EMPTY = torch.empty


class StandIn:
    """`torch.cuda` as far as the border uses it. `calls` is what was asked, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.allocated: list[dict[str, Any]] = []
        self.capture_breaks = False
        self._streams = 0
        stand_in = self
        signature = inspect.signature(torch.cuda.graph.__init__)

        class Event:
            def __init__(self, **options: Any) -> None:
                assert options == {"blocking": True}

            def record(self, stream: str) -> None:
                stand_in.calls.append(("record", stream))

            def synchronize(self) -> None:
                stand_in.calls.append(("synchronize",))

        class Graph:
            def replay(self) -> None:
                stand_in.calls.append(("replay",))

        def new_stream(device: torch.device) -> str:
            assert device == CARD
            self._streams += 1
            return f"stream {self._streams}"

        @contextmanager
        def on(stream: str) -> Iterator[None]:
            self.calls.append(("on", stream))
            yield
            self.calls.append(("off", stream))

        @contextmanager
        def capturing(*args: Any, **options: Any) -> Iterator[None]:
            bound = signature.bind(None, *args, **options).arguments
            assert isinstance(bound["cuda_graph"], Graph)
            assert border._capturing.locked()
            self.calls.append(("capture", bound["stream"], bound["pool"], bound["capture_error_mode"]))
            if self.capture_breaks:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            yield
            self.calls.append(("captured",))

        def whole_device(name: str) -> Any:
            def call(*args: Any) -> None:
                assert border._capturing.locked(), "no capture may be going on"
                self.calls.append((name, *args))

            return call

        def empty(shape: tuple[int, ...], **options: Any) -> torch.Tensor:
            self.allocated.append({"shape": tuple(shape), **options})
            return REAL_EMPTY(shape, dtype=options["dtype"])

        pools = iter(("first pool", "second pool"))
        for name, value in {
            "Stream": new_stream,
            "Event": Event,
            "stream": on,
            "graph": capturing,
            "CUDAGraph": Graph,
            "graph_pool_handle": lambda: next(pools),
            "synchronize": whole_device("drain"),
            "empty_cache": whole_device("free"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch, "empty", empty)

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(monkeypatch)


def slot_on(device: CudaDevice) -> Slot:
    published = published_resnet50_preprocessing()
    preprocessing = Preprocessing(None, SIZE, published.interpolation, published.mean, published.std)
    mean_colour = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    forward = Forward(mean_colour, preprocessing, torch.device("cpu"), torch.float32)
    return Slot(device, forward, SIZE, 3, 4, seconds={1: 1.0, 2: 1.1, 4: 1.2})


def test_both_ends_of_a_copy_are_pinned_or_on_the_card(stand_in: StandIn) -> None:
    """Pixels and scores each have a pinned buffer on the host and one on the card, for the largest batch."""
    slot_on(CudaDevice(CARD))
    pixels, scores = (4, *SIZE, 3), (4, 3)
    assert stand_in.allocated == [
        {"shape": pixels, "dtype": torch.uint8, "pin_memory": True},
        {"shape": pixels, "dtype": torch.uint8, "device": CARD},
        {"shape": scores, "dtype": torch.float32, "device": CARD},
        {"shape": scores, "dtype": torch.float32, "pin_memory": True},
    ]


def test_every_bucket_is_captured_on_the_slot_s_stream_into_its_pool(stand_in: StandIn) -> None:
    """Largest first; without forbidding other threads their work; memory held for later is given back after them."""
    slot = slot_on(CudaDevice(CARD))
    slot.prepare(4)
    captures = [call for call in stand_in.calls if call[0] == "capture"]
    assert captures == [("capture", "stream 1", "first pool", "thread_local")] * 3
    assert slot.buckets == [1, 2, 4]
    assert stand_in.names()[-1] == "free"
    # What was put onto the stream before a capture has ended when it begins.
    for number, name in enumerate(stand_in.names()):
        if name == "capture":
            assert stand_in.names()[number - 2 : number] == ["record", "synchronize"]


def test_a_batch_is_copied_replayed_copied_and_waited_for_asleep(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the slot's stream, without waiting for either copy, and with one event at the end."""
    slot = slot_on(CudaDevice(CARD))
    slot.prepare(4)
    stand_in.calls.clear()
    real_copy = torch.Tensor.copy_

    def copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        stand_in.calls.append(("copy", len(target), non_blocking))
        return real_copy(target, source)

    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    slot.run(np.zeros((3, *SIZE, 3), np.uint8))
    assert stand_in.calls == [
        ("on", "stream 1"),
        ("copy", 3, True),
        ("replay",),
        ("copy", 3, True),
        ("record", "stream 1"),
        ("synchronize",),
        ("off", "stream 1"),
    ]


def test_a_broken_capture_leaves_no_lock_behind(stand_in: StandIn) -> None:
    """After it the device can be waited for, and the slot works on a new pool without graphs."""
    device = CudaDevice(CARD)
    slot = slot_on(device)
    stand_in.capture_breaks = True
    slot.prepare(2)
    assert stand_in.names().count("capture") == 1
    device.drain()
    black = slot.run(np.zeros((2, *SIZE, 3), np.uint8))
    assert "replay" not in stand_in.names()
    assert np.abs(black[0] - np.array([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])).max() < 1e-5


def test_one_capture_at_a_time(stand_in: StandIn) -> None:
    """A second thread's capture, and whoever waits for the whole device, come when the first has ended."""
    device = CudaDevice(CARD)
    inside, may_end = threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        assert may_end.wait(30)

    first = threading.Thread(target=lambda: device.capture(slow, "stream 8", "pool 8"))
    first.start()
    assert inside.wait(30)
    others = [
        threading.Thread(target=lambda: device.capture(lambda: None, "stream 9", "pool 9")),
        threading.Thread(target=device.free_memory),
        threading.Thread(target=device.drain),
    ]
    for thread in others:
        thread.start()
    may_end.set()
    for thread in [first, *others]:
        thread.join(30)
    assert stand_in.names()[:2] == ["capture", "captured"]
    assert sorted(stand_in.names()[2:]) == ["capture", "captured", "drain", "free"]
