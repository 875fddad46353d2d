"""Decisions that names and shapes leave open: by a setting, else the file, else its family, else an assumption."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from ..errors import SettingError
from ..settings import ENV_PREFIX, SWITCHES, CheckpointSettings
from .base import Contents, Decision, Decisions
from .own_preprocessing import decide_preprocessing, preprocessing_notes, preprocessing_warnings
from .scaling import SUSPICIOUS, fitting_presets, spread_error
from .state_dict import never_trained

T = TypeVar("T")
_USUAL = "the usual way"


def with_activation_for(count: int, decisions: Decisions) -> Decisions:
    """`decisions` for a network with `count` outputs: one output means a sigmoid.

    Raises `SettingError` for a softmax of one output, which is 1 for every image.
    """
    if count != 1 or decisions.activation.value != "softmax":
        return decisions
    if decisions.activation.source == _USUAL:
        return replace(decisions, activation=Decision("sigmoid", "its one output"))
    raise SettingError(
        f"{decisions.activation.source} has softmax for an activation, and of the one output that this checkpoint has "
        f"a softmax is 1 for every image. Set {ENV_PREFIX}ACTIVATION to sigmoid, or to none if it is a probability."
    )


def decide_all(settings: CheckpointSettings, contents: Contents) -> Decisions:
    """Make the decisions that `contents` leaves open, except the labels, which need the number of classes.

    Raises `SettingError` or `CheckpointError` for a preprocessing that does not exist or does not fit.
    """
    told = contents.told
    architecture = _chosen(settings, "architecture") or told.architecture or Decision("resnet50", "its layers")
    # v1 files use torchvision's names too: v1.5 is the common case, and no name states it.
    is_open = architecture.value == "resnet50" and contents.graph is None
    if not is_open:
        _refuse_switches(settings, architecture.value)
    if settings.onnx_output is not None and contents.graph is None:
        raise SettingError(f"{ENV_PREFIX}ONNX_OUTPUT is a setting of an ONNX file, and this is none: unset it.")
    return Decisions(
        architecture=architecture,
        stride_in=_chosen(settings, "stride_in") or told.stride_in or Decision("3x3", "the usual way (v1.5)", is_open),
        stem=_chosen(settings, "stem") or told.stem or Decision("symmetric", _USUAL),
        pool=_chosen(settings, "pool") or told.pool or Decision("symmetric", _USUAL),
        epsilon=_chosen(settings, "epsilon") or told.epsilon or Decision(1e-5, _USUAL),
        preprocessing=decide_preprocessing(settings, contents, architecture.value),
        altered=told.altered or Decision((), _USUAL),
        head=told.head or Decision((), "its shapes"),
        activation=_chosen(settings, "activation") or told.activation or Decision("softmax", _USUAL),
    )


def _chosen(settings: CheckpointSettings, name: str) -> Decision[T] | None:
    """The setting `name`, if the user gave it."""
    value = getattr(settings, name)
    if value in (None, "auto"):
        return None
    return Decision(value, f"{ENV_PREFIX}{name.upper()}")


def _refuse_switches(settings: CheckpointSettings, architecture: str) -> None:
    """Raises `SettingError` for a switch of a ResNet-50 with another network, on which it would have no effect."""
    for name in SWITCHES:
        if _chosen(settings, name) is not None:
            raise SettingError(
                f"{ENV_PREFIX}{name.upper()} is a setting of a resnet50, and this is {architecture}: unset it."
            )


def notes_of(contents: Contents, decisions: Decisions) -> Iterator[str]:
    """Facts of the checkpoint that the decisions do not use, a sentence each."""
    yield from preprocessing_notes(contents, decisions.preprocessing, decisions.architecture.value)


def warnings_of(contents: Contents, decisions: Decisions, name: str) -> Iterator[str]:
    """Reasons why this checkpoint's answers could be wrong, a sentence each."""
    yield from contents.warnings
    yield from preprocessing_warnings(contents, decisions.preprocessing, name)
    if decisions.preprocessing.is_assumed:
        yield (
            f"Nothing in {name} says how its images were prepared: assuming {decisions.preprocessing.source} "
            f"({decisions.preprocessing.value.describe()}). If it was trained otherwise, set "
            f"RESNET_PREPROCESSING or what differs, such as RESNET_RESIZE or RESNET_MEAN."
        )
    if decisions.stride_in.is_assumed and decisions.preprocessing.is_assumed:
        yield (
            f"Nothing in {name} says whether it is v1.5 (stride in the 3×3, as torchvision has it) or v1: assuming "
            f"v1.5. If it is v1, set RESNET_STRIDE_IN=1x1."
        )
    if decisions.pool.is_assumed:
        yield (
            f"{name} says nothing of its pool's padding: assuming {decisions.pool.value}, "
            f"{decisions.pool.source}. If it was trained otherwise, set RESNET_POOL."
        )
    if never_trained(contents.weights):
        yield (
            f"Every batch normalisation in {name} has mean 0 and variance 1, as before training: its statistics "
            f"were not saved, or it was never trained."
        )
        return
    error = spread_error(contents.weights, decisions.preprocessing.value)
    if error is not None and abs(error) > SUSPICIOUS:
        yield (
            f"The first batch normalisation in {name} was trained on inputs that spread {math.exp(abs(error)):.1f} "
            f"times as {'little' if error > 0 else 'much'} as {decisions.preprocessing.source} gives "
            f"({decisions.preprocessing.value.describe()}): the scaling is probably wrong. "
            f"{_advice(fitting_presets(contents.weights))}"
        )


def _advice(presets: list[str]) -> str:
    if presets:
        return f"RESNET_PREPROCESSING with the scaling that fits: {', '.join(presets)}."
    return "No preset of RESNET_PREPROCESSING has a scaling that fits."
