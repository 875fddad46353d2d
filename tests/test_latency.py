"""What is known of how long a batch takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.batching import LatencyModel, retry_after_seconds
from app.batching.cap import BatchCap


def test_the_warm_up_is_a_line() -> None:
    """Two sizes tell both terms."""
    model = LatencyModel({1: 0.012, 8: 0.026})
    assert model.alpha == pytest.approx(0.010)
    assert model.beta == pytest.approx(0.002)
    assert model.predict(4) == pytest.approx(0.018)


def test_without_measurements_nothing_is_expected_until_a_batch_has_run() -> None:
    """No time at first, then in proportion to the size."""
    model = LatencyModel()
    assert model.predict(8) == 0
    model.observe(4, 0.2)
    assert model.predict(4) == pytest.approx(0.2)
    assert 0 < model.predict(1) <= 0.2


def test_a_device_that_becomes_slower_is_noticed() -> None:
    """After some tens of batches the prediction is the new time, also where all are of one size."""
    model = LatencyModel({1: 0.01, 8: 0.08})
    for _ in range(100):
        model.observe(8, 0.16)
    assert model.predict(8) == pytest.approx(0.16, rel=0.1)
    for _ in range(200):
        model.observe(8, 0.08)
    assert model.predict(8) == pytest.approx(0.08, rel=0.1)


def test_one_stall_does_not_turn_everybody_away() -> None:
    """A batch during which the machine slept for a minute moves the prediction by a bounded factor."""
    model = LatencyModel({1: 0.01, 8: 0.08})
    model.observe(8, 60.0)
    assert model.predict(8) < 0.2


@given(
    measured=st.dictionaries(st.integers(1, 128), st.floats(1e-6, 10), max_size=6),
    batches=st.lists(st.tuples(st.integers(1, 128), st.floats(0, 100)), max_size=60),
)
def test_a_prediction_is_never_negative_and_never_falls_with_the_size(
    measured: dict[int, float], batches: list[tuple[int, float]]
) -> None:
    """Whatever was measured, a larger batch takes no less than a smaller one, and nothing takes less than no time."""
    model = LatencyModel(measured)
    for size, seconds in batches:
        model.observe(size, seconds)
        predictions = [model.predict(each) for each in range(1, 130)]
        assert predictions[0] >= -1e-12
        assert predictions == sorted(predictions)


def test_retries_are_spread() -> None:
    """Around the wait, within a quarter; never at once."""
    times = [retry_after_seconds(4.0) for _ in range(200)]
    assert min(times) >= 3.0
    assert max(times) <= 5.0
    assert max(times) - min(times) > 1.0
    assert retry_after_seconds(0.0) > 0.05


def test_the_cap_halves_and_grows_back_slowly() -> None:
    """Out of memory halves it at once; fifty full batches that run well double it, up to the plan."""
    cap = BatchCap(32)
    cap.ran_out_of_memory(32)
    assert cap.now == 16
    cap.ran_out_of_memory(16)
    assert cap.now == 8
    for _ in range(200):
        cap.ran_well(4)  # not full: it says nothing about a larger one
    assert cap.now == 8
    for _ in range(49):
        cap.ran_well(8)
    assert cap.now == 8
    cap.ran_well(8)
    assert cap.now == 16
    for _ in range(50):
        cap.ran_well(16)
    assert cap.now == 32
    for _ in range(50):
        cap.ran_well(32)
    assert cap.now == 32
    cap.ran_out_of_memory(1)
    assert cap.now == 1
