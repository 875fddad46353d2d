"""scores → top-k: what a client is told of a row of numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.errors import ModelOutputInvalid
from app.labels import imagenet_labels
from app.ranking import rank
from app.types import Activation, Prediction, Scores

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Few different values, so that ties are the rule.
coarse = st.integers(-3, 3).map(float)
rows = arrays(np.float32, st.integers(1, 60), elements=finite) | arrays(np.float32, st.integers(1, 60), elements=coarse)


def labels_for(scores: Scores) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(len(scores)))


def softmax(scores: Scores) -> list[float]:
    """The definition, in Python's floats and with an exact sum."""
    largest = max(float(score) for score in scores)
    exponentials = [math.exp(float(score) - largest) for score in scores]
    total = math.fsum(exponentials)
    return [value / total for value in exponentials]


@given(rows, st.integers(1, 70))
@example(np.zeros(1000, np.float32), 5)
@example(np.array([3.4e38, -3.4e38], np.float32), 2)
@example(np.array([88.8, 88.7, -104.0], np.float32), 3)
def test_logits_become_the_softmax_ranked(scores: Scores, top_k: int) -> None:
    """The answer is the softmax's largest values, best first, equals in the order of their class ids."""
    predictions = rank(scores, "softmax", labels_for(scores), top_k)
    expected = softmax(scores)
    assert len(predictions) == min(top_k, len(scores))
    for prediction in predictions:
        assert prediction.label == f"class {prediction.class_id}"
        assert math.isclose(prediction.probability, expected[prediction.class_id], rel_tol=1e-12, abs_tol=1e-12)
    order = [(-prediction.probability, prediction.class_id) for prediction in predictions]
    assert order == sorted(order)
    assert len({prediction.class_id for prediction in predictions}) == len(predictions)
    left_out = set(range(len(scores))) - {prediction.class_id for prediction in predictions}
    assert all(expected[index] <= predictions[-1].probability + 1e-12 for index in left_out)
    assert sum(prediction.probability for prediction in predictions) <= 1 + 1e-12


@given(rows)
def test_all_classes_add_up_to_one(scores: Scores) -> None:
    """The probabilities of all classes are none below zero and add up to 1."""
    probabilities = [prediction.probability for prediction in rank(scores, "softmax", labels_for(scores), len(scores))]
    assert min(probabilities) >= 0
    assert math.isclose(math.fsum(probabilities), 1, abs_tol=1e-12)


@given(rows, st.integers(1, 59))
def test_fewer_are_the_beginning_of_more(scores: Scores, top_k: int) -> None:
    """A shorter ranking is the beginning of a longer one, also where it cuts through equals."""
    labels = labels_for(scores)
    assert rank(scores, "softmax", labels, top_k) == rank(scores, "softmax", labels, len(scores))[:top_k]


@given(rows, st.integers(1, 60))
def test_ranking_leaves_the_scores_alone(scores: Scores, top_k: int) -> None:
    """The row that a backend answered is not changed by ranking it."""
    before = scores.copy()
    rank(scores, "softmax", labels_for(scores), top_k)
    assert np.array_equal(scores, before)


def test_equal_scores_come_in_the_order_of_the_classes() -> None:
    """Where the cut goes through equals, the lower class ids are in."""
    scores = np.array([0, 1, 5, 1, 1, 5, 1], np.float32)
    assert [prediction.class_id for prediction in rank(scores, "softmax", labels_for(scores), 4)] == [2, 5, 1, 3]


def test_probabilities_are_not_softmaxed_again() -> None:
    """What a network already answers as probabilities is ranked as it is."""
    scores = np.array([0.125, 0.625, 0.25], np.float32)
    assert rank(scores, "none", ("a", "b", "c"), 2) == (Prediction(1, "b", 0.625), Prediction(2, "c", 0.25))


def test_classes_with_one_name_stay_apart() -> None:
    """Two classes that a labels file calls the same are two predictions with their own class ids."""
    best = rank(np.array([1, 3, 2], np.float32), "softmax", ("crane", "heron", "crane"), 3)
    named = [(prediction.class_id, prediction.label) for prediction in best]
    assert named == [(1, "heron"), (2, "crane"), (0, "crane")]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["softmax", "none"])
@pytest.mark.parametrize("position", [0, 500, 999])
def test_values_that_are_not_finite_fail_and_do_not_rank(wrong: float, kind: str, position: int) -> None:
    """One NaN or infinity anywhere in a row is an error of the model's, told as such."""
    scores = np.zeros(1000, np.float32)
    scores[position] = wrong
    with pytest.raises(ModelOutputInvalid) as refusal:
        rank(scores, kind, imagenet_labels(), 5)  # type: ignore[arg-type]
    assert refusal.value.status == 500
    assert refusal.value.code == "model_output_invalid"


def test_sigmoid_gives_each_class_its_own_probability() -> None:
    """With a sigmoid, probabilities are 1 / (1 + exp(-x)) each, at both ends of what float32 holds."""
    scores = np.array([0.0, 2.0, -2.0, 3e38, -3e38], np.float32)
    found = {each.class_id: each.probability for each in rank(scores, "sigmoid", labels_for(scores), 5)}
    assert found == pytest.approx({0: 0.5, 1: 0.8807970779778823, 2: 0.11920292202211755, 3: 1.0, 4: 0.0})


@pytest.mark.parametrize(("activation", "score"), [("sigmoid", -1.0986123), ("none", 0.25)])
def test_one_output_with_two_labels_answers_both(activation: Activation, score: float) -> None:
    """One output is the probability of the second of two labels, and the first has the rest."""
    found = rank(np.array([score], np.float32), activation, ("cat", "dog"), 2)
    assert [(each.class_id, each.label) for each in found] == [(0, "cat"), (1, "dog")]
    assert [each.probability for each in found] == pytest.approx([0.75, 0.25], abs=1e-6)


def test_one_output_with_one_label_answers_that() -> None:
    """One output with one label is that label's probability."""
    (found,) = rank(np.array([0.0], np.float32), "sigmoid", ("cat",), 1)
    assert (found.class_id, found.label, found.probability) == (0, "cat", 0.5)
