"""Tensors that cannot change an answer, each left out by a rule, and tensors that state the normalisation."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Weights

Arrays = dict[str, NDArray[Any]]

# Patterns of names, and why such a tensor is no part of the network. Components of names are separated by . or /.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    # torch.nn.BatchNorm2d, torch.optim.swa_utils.AveragedModel; thop's and other operator counters
    (re.compile(r"(?:^|[./])(?:num_batches_tracked|n_averaged)$"), "a counter"),
    (re.compile(r"(?:^|[./])(?:total_ops|total_params|total_madds|flops|params)$"), "an operator counter"),
    (re.compile(r"(?:^|[./])(?:global_step|step|epoch|iteration|save_counter|current_epoch)$"), "a counter"),
    # tf.train and Keras: counters, optimizers and their slots
    (re.compile(r"(?:^|/)(?:beta[12]_power|learning_rate|decay)(?:_\d+)?$"), "an optimizer's"),
    (
        re.compile(r"(?:^|/)\.OPTIMIZER_SLOT/|^_?optimizer/|/keras_api/metrics/|^keras_api/"),
        "an optimizer's or a metric",
    ),
    # losses and metrics as modules of a training script's class (torchmetrics)
    (
        re.compile(
            r"(?:^|\.)(?:criterion|criteria|loss|losses|loss_fn|loss_func|lossfn|loss_function|\w+_loss|\w+_criterion"
            r"|loss_\w+|metrics?|\w+_metrics?|\w+_acc|acc|accuracy|\w+_accuracy|auroc|f1|\w+_f1|confmat|confusion_matrix"
            r")(?:\.|$)"
        ),
        "a loss's or a metric's",
    ),
)
# Slots of a TensorFlow 1 optimizer for each variable, under the variable's name.
_SLOT = re.compile(
    r"^(?P<variable>.+)/(?:Adam|Momentum|RMSProp|Adagrad|Adadelta|Ftrl|LARSOptimizer|LAMB|AdamW|Adamax)(?:Optimizer)?(?:_\d+)?$"
)
_AVERAGE = re.compile(r"^(?P<variable>.+)/ExponentialMovingAverage$")
_MEAN = re.compile(r"(?:^|[._])(?:\w*_)?mean$")
_STD = re.compile(r"(?:^|[._])(?:\w*_)?(?:std|stddev)$")
_STATISTIC = re.compile(r"running_mean$|moving_mean$")


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation of the input, from tensors of the checkpoint, for images from 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    names: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Kept:
    """The tensors that no rule leaves out, and notes about the others."""

    tensors: Arrays
    notes: tuple[str, ...]
    normalisation: Normalisation | None


def leave_out(rest: Arrays, all_tensors: Weights) -> Kept:
    """The tensors of `rest`, which are those outside the body, that no rule leaves out.

    A module of `rest` whose tensors equal those of an earlier one in leaf name, shape and values is left out too.
    """
    reasons: dict[str, list[str]] = {}
    kept: Arrays = {}
    for name, values in rest.items():
        reason = _reason(name, values, all_tensors)
        if reason is None:
            kept[name] = values
        elif reason != "a counter":
            reasons.setdefault(reason, []).append(name)
    for name in _duplicates(kept):
        reasons.setdefault("a copy of another entry", []).append(name)
        del kept[name]
    normalisation = _normalisation(kept)
    notes = [f"{_listed(names)}: left out, {reason}." for reason, names in reasons.items()]
    if normalisation is not None:
        for name in normalisation.names:
            del kept[name]
    return Kept(kept, tuple(notes), normalisation)


def _reason(name: str, values: NDArray[Any], all_tensors: Weights) -> str | None:
    for pattern, reason in _RULES:
        if pattern.search(name):
            return reason
    for pattern, reason in ((_SLOT, "an optimizer's"), (_AVERAGE, "a moving average of a variable that is served")):
        match = pattern.match(name)
        if match and match["variable"] in all_tensors:
            return reason
    # Integers are counters and indices: no supported layer computes with them.
    return "a counter" if values.dtype.kind in "iub" else None


def _duplicates(kept: Arrays) -> list[str]:
    """The entries of modules with a matrix whose leaf names, shapes and values equal those of an earlier module."""
    found: list[str] = []
    first: set[tuple[tuple[str, tuple[int, ...], bytes], ...]] = set()
    modules: dict[str, list[str]] = {}
    for name in kept:
        modules.setdefault(name.replace("/", ".").rpartition(".")[0], []).append(name)
    for members in modules.values():
        # A module is a copy only if all its tensors are: two biases of zeros are not copies of each other.
        key = tuple(sorted((name.replace("/", ".").rpartition(".")[2], *_digest(kept[name])) for name in members))
        if not any(kept[name].ndim >= 2 for name in members):
            continue
        if key in first:
            found += members
        else:
            first.add(key)
    return found


def _digest(values: NDArray[Any]) -> tuple[tuple[int, ...], bytes]:
    return tuple(values.shape), hashlib.sha256(values.tobytes()).digest()


def _normalisation(kept: Arrays) -> Normalisation | None:
    """The normalisation in the only two tensors called mean and std with three numbers each; None without them."""
    means = [name for name in kept if _MEAN.search(name) and not _STATISTIC.search(name) and kept[name].size == 3]
    stds = [name for name in kept if _STD.search(name) and kept[name].size == 3]
    if len(means) != 1 or len(stds) != 1:
        return None
    mean, std = (kept[name].astype(np.float64).reshape(-1) for name in (means[0], stds[0]))
    if not (std > 0).all() or not (np.isfinite(mean).all() and np.isfinite(std).all()):
        return None
    # For levels of 0 to 255, means and deviations are above 1; for fractions neither can be.
    if mean.max() > 1.5 or std.max() > 1.5:
        mean, std = mean / 255, std / 255
    return Normalisation(_three(mean), _three(std), (means[0], stds[0]))


def _three(values: NDArray[np.float64]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
