"""Which buckets a batch runs in: every image once, and never dearer than padding or splitting would be."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.backends.torch.buckets import Run, buckets_up_to, plan_runs


def cost(runs: Sequence[Run], seconds: Mapping[int, float]) -> float:
    return sum(seconds[run.bucket] for run in runs)


tables = st.dictionaries(
    st.integers(1, 24), st.floats(0, 10, allow_nan=False, allow_infinity=False), min_size=1, max_size=6
)


@given(tables, st.integers(1, 40))
def test_every_image_runs_once_and_no_way_is_cheaper(seconds: dict[int, float], largest: int) -> None:
    """For any times: all images, in buckets that exist; no dearer than any padding, any split, or both."""
    plans = plan_runs(largest, seconds)
    assert len(plans) == largest + 1
    assert plans[0] == ()
    for size, runs in enumerate(plans):
        assert sum(run.images for run in runs) == size
        assert all(0 < run.images <= run.bucket and run.bucket in seconds for run in runs)
        assert all(run.images == run.bucket for run in runs[:-1]), "only the last run is padded"
        for bucket in seconds:
            fewest = -(-size // bucket)
            assert cost(runs, seconds) <= fewest * seconds[bucket] + 1e-9
        for first in range(1, size):
            assert cost(runs, seconds) <= cost(plans[first], seconds) + cost(plans[size - first], seconds) + 1e-9


@given(st.dictionaries(st.integers(1, 6), st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 8))
def test_the_plan_is_the_best_of_all(seconds: dict[int, int], size: int) -> None:
    """Against every combination of buckets that holds the batch, tried one by one."""
    best = min(
        sum(seconds[bucket] for bucket in chosen)
        for count in range(1, size + 1)
        for chosen in itertools.combinations_with_replacement(sorted(seconds), count)
        if sum(chosen) >= size
    )
    assert cost(plan_runs(size, seconds)[size], seconds) == best


def runs_of(size: int, seconds: Mapping[int, float]) -> list[tuple[int, int]]:
    return [(run.images, run.bucket) for run in plan_runs(size, seconds)[size]]


def test_a_device_with_a_high_fixed_cost_pads() -> None:
    """Where a run costs about the same whatever its size, one padded run is the plan."""
    seconds = {bucket: 1.0 + bucket / 100 for bucket in (1, 2, 4, 8, 16)}
    assert runs_of(5, seconds) == [(5, 8)]
    assert runs_of(9, seconds) == [(9, 16)]
    assert runs_of(16, seconds) == [(16, 16)]


def test_a_device_whose_cost_is_the_images_splits() -> None:
    """Where each image costs the same, nothing is computed for nobody, in as few runs as that takes."""
    seconds = {bucket: float(bucket) for bucket in (1, 2, 4, 8, 16)}
    assert runs_of(5, seconds) == [(4, 4), (1, 1)]
    assert runs_of(11, seconds) == [(8, 8), (2, 2), (1, 1)]
    assert runs_of(16, seconds) == [(16, 16)]


def test_padding_ends_a_split_where_both_pay() -> None:
    """A large full run and a small padded one, where that beats both ways alone."""
    assert runs_of(11, {1: 1.0, 4: 1.5, 8: 2.0, 16: 4.0}) == [(8, 8), (3, 4)]


def test_a_bucket_that_is_slow_is_left_out() -> None:
    """A size at which the device is bad is not used, even for a batch of exactly that size."""
    assert runs_of(4, {1: 1.0, 2: 1.1, 4: 9.0}) == [(2, 2), (2, 2)]
    assert runs_of(2, {1: 5.0, 2: 9.0, 4: 3.0}) == [(2, 4)]


def test_a_batch_over_the_largest_bucket_is_split() -> None:
    """Where larger buckets did not fit, the largest that did is used again and again."""
    assert runs_of(20, {1: 1.0, 8: 1.2}) == [(8, 8), (8, 8), (4, 8)]
    assert runs_of(17, {1: 1.0, 8: 1.2}) == [(8, 8), (8, 8), (1, 1)]


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9]), (50, [1, 2, 4, 8, 16, 32, 50])],
)
def test_the_largest_batch_has_a_bucket_of_its_own(batch_size: int, expected: list[int]) -> None:
    """Powers of two, and the size itself: full batches are never padded."""
    assert buckets_up_to(batch_size) == expected


def test_without_a_bucket_there_is_no_plan() -> None:
    """Nothing prepared is a mistake of the caller's, and said."""
    with pytest.raises(ValueError, match="No bucket"):
        plan_runs(4, {})
