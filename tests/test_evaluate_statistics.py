"""Statistics against scipy's, and the properties that recommendations rest on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.evaluation.facts import Facts
from app.evaluation.report import measure_accuracy
from app.evaluation.search import looks_of
from app.evaluation.statistics import calibration, difference_interval, holm, mcnemar, sign_flips, wilson
from app.evaluation.trials import fitted_losses, in_label_order, log_losses
from app.types import Interpolation, Preprocessing
from tests.lazy import stats

PLAIN = Preprocessing(None, (4, 4), Interpolation.BILINEAR, (0.0,) * 3, (1.0,) * 3)


@given(st.integers(1, 500).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_is_scipys(pair: tuple[int, int]) -> None:
    """The interval of a share equals scipy's, from no photo right to all."""
    right, count = pair
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_scipys(gained: int, lost: int) -> None:
    """The p-value is the binomial's exact one, and 1 where as many were lost."""
    if gained <= lost:
        assert mcnemar(gained, lost) == 1
    else:
        expected = stats.binomtest(gained, gained + lost, alternative="greater").pvalue
        assert mcnemar(gained, lost) == pytest.approx(expected)


def test_difference_interval_holds_the_difference() -> None:
    """It lies about the difference, is symmetric in the two, and narrower for more photos."""
    low, high = difference_interval(12, 2, 100)
    assert low < 0.1 < high
    assert difference_interval(2, 12, 100) == pytest.approx((-high, -low))
    wide, narrow = difference_interval(0, 0, 10), difference_interval(0, 0, 1000)
    assert wide[0] < narrow[0] < 0 < narrow[1] < wide[1]


def test_sign_flips_is_scipys() -> None:
    """The p-value is that of scipy's permutation test of paired samples, and uniform where nothing differs."""
    random = np.random.default_rng(0)
    differences = random.normal(-0.3, 1, 40)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", alternative="less", n_resamples=20_000, rng=1
    ).pvalue
    assert sign_flips(differences) == pytest.approx(expected, abs=0.01)
    assert sign_flips(np.zeros(10)) == 1
    assert sign_flips(np.full(40, -1.0)) < 1e-4
    chances = [sign_flips(random.normal(0, 1, 30)) for _ in range(60)]
    assert sum(chance < 0.1 for chance in chances) <= 14


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_is_no_weaker_than_bonferroni(values: list[float]) -> None:
    """Corrected values are in the same order, none is below its own, and none above Bonferroni's."""
    corrected = holm(values)
    for value, after in zip(values, corrected, strict=True):
        assert value <= after <= min(1.0, len(values) * value) + 1e-12 or after == max(corrected)
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_holm_is_the_papers() -> None:
    """Three values, by hand."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_calibration_error_is_the_formulas() -> None:
    """Two bins: half the photos 0.1 too sure and half 0.2 too unsure are 0.15 off."""
    confidences = np.array([0.8] * 10 + [0.3] * 10)
    is_right = np.array([True] * 7 + [False] * 3 + [True] * 5 + [False] * 5)
    found = calibration(confidences, is_right)
    assert found.error == pytest.approx(0.15)
    assert sum(each.count for each in found.bins) == 20
    assert len(found.bins) == 15
    assert calibration(np.ones(4), np.ones(4, bool)).error == 0


def test_a_temperature_makes_nothing_better() -> None:
    """Fitted losses do not depend on how sure a network is, only on what it is sure of."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (200, 6))
    truth = np.zeros((200, 6), bool)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth[np.arange(200), [random.choice(6, p=row) for row in chances]] = True
    facts = Facts(None, PLAIN, "softmax")

    def softened(temperature: float) -> np.ndarray:
        parts = np.exp(logits / temperature)
        return np.asarray(parts / parts.sum(axis=1, keepdims=True))

    fitted = [fitted_losses(softened(temperature), facts, truth).mean() for temperature in (0.5, 1, 3)]
    assert fitted == pytest.approx([fitted[1]] * 3, rel=1e-3)
    assert fitted[1] <= log_losses(softened(1), truth).mean() + 1e-6
    assert log_losses(softened(0.5), truth).mean() > fitted[1] + 0.1


def test_columns_go_to_the_labels_places() -> None:
    """The column of an output lies where its label is."""
    facts = Facts(None, PLAIN, "none", order=(2, 0, 1))
    assert in_label_order(np.array([[0.7, 0.2, 0.1]]), facts).tolist() == [[0.2, 0.1, 0.7]]


def test_accuracy_by_hand() -> None:
    """Top-1, top-5, classes, precision and confusions of six photos of seven classes."""
    found = np.full((6, 7), 0.02)
    for row, order in enumerate([(0, 1), (0, 1), (1, 0), (1, 2), (2, 1), (6, 0)]):
        found[row, order[0]], found[row, order[1]] = 0.6, 0.3
    truth = np.zeros((6, 7), bool)
    truth[range(6), [0, 0, 0, 1, 1, 5]] = True
    accuracy = measure_accuracy(found, truth, "abcdefg")
    assert (accuracy.top1.right, accuracy.top1.count) == (3, 6)
    assert accuracy.top5 is not None
    assert accuracy.top5.right == 5
    first = accuracy.classes[0]
    assert (first.label, first.photos, first.right, first.answered, first.precision) == ("a", 3, 2, 2, 1.0)
    assert accuracy.classes[-1].precision is None
    assert {(each.label, each.answered, each.photos) for each in accuracy.confusions} == {
        ("a", "b", 1),
        ("b", "c", 1),
        ("f", "g", 1),
    }
    assert measure_accuracy(found[:, :5], truth[:, :5], "abcde").top5 is None


@pytest.mark.parametrize(("count", "looks"), [(1, [1]), (40, [40]), (60, [32, 60]), (500, [32, 64, 128, 256, 500])])
def test_photos_are_looked_at_in_doublings(count: int, looks: list[int]) -> None:
    """Each look has about twice the photos of the one before it, and the last has all."""
    assert looks_of(count) == looks
