"""Keras layers that scale and shift the levels of an image, as one factor and one shift for each channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .keras_body import read_epsilon
from .keras_graph import KerasGraph, Node
from .keras_operations import PRODUCTS, QUOTIENTS, SIGN, inverted, negated, numbers_of, operands_of, pairs_of

_NORMALIZATION_EPSILON = 1e-7  # keras.backend.epsilon(), the least deviation that Normalization divides by


class Scaling:
    """Reads `factor × level + shift` from nodes and from the variables of normalisations."""

    def __init__(self, graph: KerasGraph, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.used: set[str] = set()
        """Labels of the normalisations that were read: their variables are no part of the network."""
        self.mean_of_fractions: Node | None = None
        """The last Normalization with means and deviations below 1, as images with levels from 0 to 1 have."""
        self._graph = graph
        self._tensors = tensors

    def of(self, node: Node, count: int) -> list[tuple[float, float]] | None:
        """Factor and shift of each of `count` channels; None for a node that does something else to them."""
        kind, options = node.kind, node.options
        if kind == "Rescaling":
            return pairs_of(options.get("scale"), options.get("offset", 0.0), count)
        if kind == "Normalization":
            return self._normalization(node, count)
        if kind == "BatchNormalization":
            return self._batch_normalization(node, count)
        if kind in ("Negative", "tf.math.negative"):
            return [(-1.0, 0.0)] * count
        operands = operands_of(node)
        if operands is None:
            return None
        value, is_first = operands
        if kind in SIGN:
            if is_first:
                return pairs_of(SIGN[kind], value, count)
            return pairs_of(1.0, value if SIGN[kind] > 0 else negated(value), count)
        if kind in PRODUCTS:
            return pairs_of(value, 0.0, count)
        if kind in QUOTIENTS and not is_first:
            return pairs_of(inverted(value), 0.0, count)
        return None

    def _normalization(self, node: Node, count: int) -> list[tuple[float, float]] | None:
        """(x - mean) / deviation, of the options or of the variables; inverted, x · deviation + mean."""
        mean, variance = numbers_of(node.options.get("mean")), numbers_of(node.options.get("variance"))
        if mean is None or variance is None:
            mean, variance = (self._variable(node, leaf) for leaf in ("mean", "variance"))
        if mean is None or variance is None or node.options.get("axis", -1) not in (-1, 3, [-1], [3], None, []):
            return None
        self.used.add(node.label)
        deviation = np.maximum(np.sqrt(np.maximum(variance, 0)), _NORMALIZATION_EPSILON)
        if node.options.get("invert"):
            return pairs_of(deviation, mean, count)
        if mean.max() < 1 and deviation.max() < 1 and mean.max() > 0:
            self.mean_of_fractions = node
        return pairs_of(1 / deviation, -mean / deviation, count)

    def _batch_normalization(self, node: Node, count: int) -> list[tuple[float, float]] | None:
        mean, variance = (self._variable(node, leaf) for leaf in ("moving_mean", "moving_variance"))
        if mean is None or variance is None:
            return None
        gamma, beta = self._variable(node, "gamma"), self._variable(node, "beta")
        factor = (1.0 if gamma is None else gamma) / np.sqrt(variance + read_epsilon(self._graph, node))
        self.used.add(node.label)
        return pairs_of(factor, (0.0 if beta is None else beta) - mean * factor, count)

    def _variable(self, node: Node, leaf: str) -> NDArray[np.float64] | None:
        return numbers_of(self._tensors.get(f"{node.label}/{leaf}"))
