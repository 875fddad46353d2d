"""A body that is nothing but structure costs little, whatever its format: time, memory, and the interpreter lock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import Image

from tests.hostile_structures import (
    MOST_BYTES,
    MOST_CPU_SECONDS,
    MOST_HELD_MILLISECONDS,
    MOST_MEGABYTES,
    STRUCTURES,
    Measure,
    measuring,
)
from tests.photos import encode


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measure]:
    with measuring(tmp_path_factory.mktemp("structures")) as measure:
        yield measure


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_hostile_structure_costs_little(name: str, measure: Measure) -> None:
    """A body of 64 MB that is nothing but structure is shown or refused for little CPU and memory, and no call on it
    keeps other threads from running."""
    data = STRUCTURES[name]()
    assert 0.9 * MOST_BYTES < len(data) <= MOST_BYTES + 1_000_000
    outcome, seconds, kilobytes, held = measure(lambda: data)
    assert outcome in ("pixels", "ImageTooComplex", "ImageCorrupt")
    assert seconds < MOST_CPU_SECONDS
    assert kilobytes / 1000 < MOST_MEGABYTES
    assert held * 1000 < MOST_HELD_MILLISECONDS


def test_the_measurement_sees_what_an_image_costs(measure: Measure) -> None:
    """A large picture takes more memory than any structure may."""
    cost = measure(lambda: encode(Image.new("RGB", (5000, 4000)), "PNG"))
    assert cost[0] == "pixels"
    assert cost[2] / 1000 > MOST_MEGABYTES
