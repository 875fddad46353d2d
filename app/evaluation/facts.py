"""Facts that the weights do not state (preprocessing, labels, …), and the settings that set them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..checkpoints import PRESETS, Checkpoint, Decision, Decisions
from ..layers import ResNetSwitches
from ..preprocessing import can_resize
from ..settings import ENV_PREFIX, SWITCHES, Settings
from ..types import Activation, Preprocessing

PREPROCESSING = ("preprocessing", "channels", "mean", "resize", "interpolation", "crop")
READING = ("labels", "activation")
TRIED = (*SWITCHES, *PREPROCESSING, *READING)
"""The settings for which alternatives are tried. `PREPROCESSING` is one decision: a preset, or parts of it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One way of running a network and of interpreting its output."""

    switches: ResNetSwitches | None
    preprocessing: Preprocessing
    activation: Activation
    order: tuple[int, ...] | None = None
    """For each output, the index of its label in the checkpoint's own labels; None if they are in order."""

    @property
    def run(self) -> tuple[ResNetSwitches | None, Preprocessing]:
        """The facts that scores depend on; the others concern the interpretation."""
        return self.switches, self.preprocessing

    def labels(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        return labels if self.order is None else tuple(labels[at] for at in self.order)

    def of(self, checkpoint: Checkpoint, labels: tuple[str, ...]) -> Checkpoint:
        """`checkpoint` with these facts; `labels` are its labels in their own order."""
        return replace(
            checkpoint,
            switches=self.switches,
            preprocessing=self.preprocessing,
            activation=self.activation,
            labels=self.labels(labels),
        )


def merged(base: Facts, one: Facts, other: Facts) -> Facts | None:
    """`base` with the changes of both; None if both change the same fact, or if the preprocessing is impossible."""
    changed = {}
    for each in fields(Facts):
        was, first, second = (getattr(facts, each.name) for facts in (base, one, other))
        if each.name in ("switches", "preprocessing") and was is not None:
            parts = [field.name for field in fields(was)]
            differing = [
                name for name in parts if len({getattr(was, name), getattr(first, name), getattr(second, name)}) > 1
            ]
            if any(getattr(was, name) not in (getattr(first, name), getattr(second, name)) for name in differing):
                return None
            values = {
                name: getattr(second if getattr(first, name) == getattr(was, name) else first, name)
                for name in differing
            }
            changed[each.name] = replace(was, **values)
        elif was not in (first, second):
            return None
        else:
            changed[each.name] = second if first == was else first
    both = replace(base, **changed)
    return both if _is_possible(both.preprocessing) else None


def _is_possible(preprocessing: Preprocessing) -> bool:
    """Whether the resizer has the filter, and the crop fits into the resized image."""
    short = preprocessing.resize_short_side
    fits = short is None or max(preprocessing.crop) <= short
    return fits and can_resize(preprocessing.resizer, preprocessing.interpolation)


def facts_of(checkpoint: Checkpoint) -> Facts:
    return Facts(checkpoint.switches, checkpoint.preprocessing, checkpoint.activation)


def open_decisions(decisions: Decisions | None, checkpoint: Checkpoint, everything: bool) -> tuple[str, ...]:
    """The decisions for which alternatives are tried: those that are assumed; with `everything`, all that can vary.

    Labels and the activation are always included, because trying them runs no network.
    """
    names = []
    graph = checkpoint.graph
    if checkpoint.architecture == "resnet50" and graph is None:
        names += [name for name in SWITCHES if everything or _is_open(decisions, name)]
    fixed = graph is not None and (graph.takes_pixels or graph.quantized is not None)
    if not fixed and (everything or _is_open(decisions, "preprocessing")):
        names += PREPROCESSING
    return (*names, *READING)


def _is_open(decisions: Decisions | None, name: str) -> bool:
    """Whether the decision is assumed, or follows the usual way of checkpoints."""
    if decisions is None:
        return False
    decision: Decision[Any] = getattr(decisions, name)
    return decision.is_assumed or decision.source.startswith("the usual way")


def settings_between(base: Facts, facts: Facts) -> dict[str, str]:
    """The settings with which a checkpoint that is served as `base` is served as `facts`.

    Labels in another order need a file: the value is "labels.txt".
    """
    found: dict[str, str] = {}
    if base.switches is not None and facts.switches is not None:
        for name in SWITCHES:
            value = getattr(facts.switches, name)
            if value != getattr(base.switches, name):
                found[name] = f"{value:g}" if isinstance(value, float) else str(value)
    if facts.preprocessing != base.preprocessing:
        found |= preprocessing_settings(base.preprocessing, facts.preprocessing)
    if facts.order != base.order:
        found["labels"] = "labels.txt"
    if facts.activation != base.activation:
        found["activation"] = facts.activation
    return found


def preprocessing_settings(base: Preprocessing, wanted: Preprocessing) -> dict[str, str]:
    """A preset if it equals `wanted`; else the differences from `base`, or from a preset if those are fewer."""
    name = preset_named(wanted)
    if name is not None:
        return {"preprocessing": name}
    ways = [_differing(base, wanted)]
    ways += [{"preprocessing": each} | _differing(preset, wanted) for each, preset in PRESETS.items()]
    return min(ways, key=lambda way: (not exist(way), len(way)))


def preset_named(preprocessing: Preprocessing) -> str | None:
    return next((name for name, preset in PRESETS.items() if preset == preprocessing), None)


def _differing(base: Preprocessing, wanted: Preprocessing) -> dict[str, str]:
    """The settings of the single parts in which `wanted` differs from `base`."""
    found: dict[str, str] = {}
    if _resize(wanted) != _resize(base):
        found["resize"] = _resize(wanted)
    if wanted.crop != base.crop:
        found["crop"] = _sides(wanted.crop)
    if wanted.interpolation != base.interpolation:
        found["interpolation"] = wanted.interpolation.value
    if wanted.resizer != base.resizer:
        found["resizer"] = wanted.resizer
    if wanted.floor_crop != base.floor_crop:
        found["crop_offset"] = "floor" if wanted.floor_crop else "even"
    if (wanted.mean, wanted.std) != (base.mean, base.std):
        found |= _normalisation(wanted)
    if wanted.is_bgr != base.is_bgr:
        found["channels"] = "bgr" if wanted.is_bgr else "rgb"
    return found


def _resize(preprocessing: Preprocessing) -> str:
    if not preprocessing.is_resized:
        return "none"
    if preprocessing.squash is not None:
        return _sides(preprocessing.squash)
    return "squash" if preprocessing.resize_short_side is None else str(preprocessing.resize_short_side)


def _sides(size: tuple[int, int]) -> str:
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def _normalisation(wanted: Preprocessing) -> dict[str, str]:
    """The mean of levels 0 to 255 if only a mean is subtracted; else mean and std of fractions."""
    if wanted.std == (1 / 255, 1 / 255, 1 / 255):
        return {"scale": "levels", "mean": _numbers(255 * value for value in wanted.mean)}
    return {"mean": _numbers(wanted.mean), "std": _numbers(wanted.std)}


def _numbers(values: Iterable[float]) -> str:
    written = [f"{value:.9g}" for value in values]
    return written[0] if len(set(written)) == 1 else ",".join(written)


def as_environment(settings: Mapping[str, str]) -> str:
    return " ".join(f"{ENV_PREFIX}{name.upper()}={value}" for name, value in settings.items())


def as_flags(settings: Mapping[str, str]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())


def exist(settings: Mapping[str, str]) -> bool:
    """Whether all of these are settings of this service."""
    return all(name in Settings.model_fields for name in settings)


def geometry(preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing without normalisation: the part that decoded pixels depend on."""
    return replace(preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), is_bgr=False)


def resized(preprocessing: Preprocessing, short_side: int | None, crop: tuple[int, int]) -> Preprocessing:
    """The same normalisation and filter with another resize; a short side of None squashes."""
    return replace(preprocessing, resize_short_side=short_side, crop=crop, squash=None, is_resized=True)
