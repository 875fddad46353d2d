"""The preprocessing of a checkpoint: by settings, a preprocessing.json, its own facts, or its family's usual one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from ..errors import CheckpointError, SettingError, StartError
from ..files import NotRegularError, TooLargeError, read_bounded
from ..preprocessing import PreprocessingFacts
from ..settings import ENV_PREFIX, VALUE_ERROR, CheckpointSettings, named_settings
from ..types import Preprocessing
from .base import Contents, Decision, Graph
from .input_change import behind_change
from .presets import PRESETS
from .published import default_preprocessing, find_by_name, find_by_sha256

OWN_PREPROCESSING = "preprocessing.json"
_MAX_BYTES = 64 * 1024
_SETTING = f"{ENV_PREFIX}PREPROCESSING"
_ZEROS, _ONES, _LEVELS = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1 / 255, 1 / 255, 1 / 255)


def read_own_preprocessing(folder: Path) -> PreprocessingFacts | None:
    """The facts in the user's file in `folder`; None if there is none. Raises `CheckpointError` for a damaged one."""
    path = folder / OWN_PREPROCESSING
    try:
        data = read_bounded(path, _MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except NotRegularError:
        raise CheckpointError(f"{path} is no regular file. Put the file itself there, or remove it.") from None
    except TooLargeError:
        raise CheckpointError(f"{path} is over {_MAX_BYTES:,} bytes, which no {OWN_PREPROCESSING} is.") from None
    except OSError as error:
        raise CheckpointError(
            f"Cannot read {path}: {error.strerror}. Make it readable for the user that runs the service, or remove it."
        ) from None
    try:
        return PreprocessingFacts.model_validate_json(data.removeprefix(b"\xef\xbb\xbf"))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_explained(error)}.") from None


def _explained(error: ValidationError) -> str:
    """The first invalid member, the reason, and the valid values."""
    first = error.errors()[0]
    member = str(first["loc"][0])[:40] if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f"{member!r} is no member of it, which are {', '.join(PreprocessingFacts.model_fields)}"
    if first["type"] == "json_invalid":
        return "it is not JSON"
    if first["type"] == "model_type":
        return 'it is no JSON object, as {"resize": 256, "crop": 224} is one'
    reason = _members(first["msg"].removeprefix(VALUE_ERROR))
    return f"{member!r} cannot be {str(first['input'])[:60]!r}: {reason}" if member else reason


def decide_preprocessing(
    settings: CheckpointSettings, contents: Contents, architecture: str
) -> Decision[Preprocessing]:
    """The preset in the settings, otherwise the checkpoint's own preprocessing or its usual one, with the user's facts.

    Raises `SettingError` and `CheckpointError` for an unknown preset, facts that do not fit together, and a
    preprocessing other than the one that a quantized model was calibrated for.
    """
    record = contents.graph.quantized if contents.graph is not None else None
    if record is not None:
        return _of_quantized(settings, contents, Decision(record.preprocessing, _told_source(contents)))
    own = contents.preprocessing_beside
    if settings.preprocessing != "auto":
        base = Decision(_named(settings.preprocessing, architecture, _SETTING, SettingError), _SETTING)
        decision = _of_graph(contents.graph, base)
    else:
        if own is not None and own.preset is not None:
            base = Decision(_named(own.preset, architecture, OWN_PREPROCESSING, CheckpointError), OWN_PREPROCESSING)
            decision = _of_graph(contents.graph, base)
        else:
            decision = stated_preprocessing(contents, architecture) or _usual(architecture)
        if own is not None:
            decision = _with(own, decision, OWN_PREPROCESSING, CheckpointError, _members)
    facts = settings.preprocessing_facts
    names = ", ".join(f"{ENV_PREFIX}{name.upper()}" for name in facts.stated)
    decision = _with(facts, decision, names, SettingError, named_settings)
    if contents.told.input is None:
        return decision
    has_preset = settings.preprocessing != "auto" or (own is not None and own.preset is not None)
    stated = {*facts.stated, *(own.stated if own is not None else ())}
    return behind_change(
        contents.told.input,
        decision,
        is_stated=has_preset or stated_preprocessing(contents, architecture) is not None,
        is_explicit=not stated.isdisjoint({"mean", "std", "scale"}),
    )


def stated_preprocessing(contents: Contents, architecture: str) -> Decision[Preprocessing] | None:
    """The preprocessing known by the checkpoint's checksum, or stated by the checkpoint; None if there is neither."""
    published = find_by_sha256(architecture, contents.sha256)
    if published is not None:
        return Decision(published.preprocessing, f"torchvision's {published.name}, by checksum")
    return contents.told.preprocessing


def _usual(architecture: str) -> Decision[Preprocessing]:
    preprocessing, name = default_preprocessing(architecture)
    return Decision(preprocessing, f"{name}'s way", is_assumed=True)


def _with(
    facts: PreprocessingFacts,
    base: Decision[Preprocessing],
    source: str,
    kind: type[StartError],
    named: Callable[[str], str],
) -> Decision[Preprocessing]:
    """`base` with the facts of `source`. Raises an error of `kind`, in which `named` spells the facts' names."""
    if not facts.stated or facts.stated == ("preset",):
        return base
    try:
        value = facts.applied_to(base.value)
    except ValueError as error:
        raise kind(f"{source}, with {base.source} ({base.value.describe()}): {named(str(error))}.") from None
    if base.source == source or facts.completes(base.value):
        return Decision(value, source)
    return Decision(value, f"{base.source}, {source}", base.is_assumed)


def _members(text: str) -> str:
    return re.sub(r"`(\w+)`", r'"\1"', text)


def _named(name: str, architecture: str, source: str, kind: type[StartError]) -> Preprocessing:
    """The preset `name`, or the preprocessing of torchvision's weights of that name."""
    if name in PRESETS:
        return PRESETS[name]
    try:
        return find_by_name(architecture, name).preprocessing
    except SettingError as error:
        what = f"{source} cannot be" if source == _SETTING else f'{source}: "preset" cannot be'
        auto = "auto, " if source == _SETTING else ""
        raise kind(
            f"{what} {name[:60]!r}: it is {auto}a preset ({', '.join(PRESETS)}) or a torchvision weight name. {error}"
        ) from None


def _deviation_of(graph: Graph | None) -> tuple[float, float, float] | None:
    """The divisor of pixels for a graph that normalises its input itself; None for any other."""
    if graph is None or graph.scale is None or graph.takes_pixels:
        return None
    return _ONES if graph.scale == "unit" else _LEVELS


def _of_graph(graph: Graph | None, preset: Decision[Preprocessing]) -> Decision[Preprocessing]:
    """A preset for a graph, without the normalisation that the graph contains."""
    deviation = _deviation_of(graph)
    if deviation is None:
        return preset
    value = replace(preset.value, mean=_ZEROS, std=deviation)
    return Decision(value, f"{preset.source}, normalised by the graph")


def _told_source(contents: Contents) -> str:
    return contents.told.preprocessing.source if contents.told.preprocessing else "its record"


def _of_quantized(
    settings: CheckpointSettings, contents: Contents, recorded: Decision[Preprocessing]
) -> Decision[Preprocessing]:
    """The record's preprocessing. Raises as `decide_preprocessing` if the settings or the user's file state another."""
    made = "but this model was quantized for its own preprocessing: unset it, or quantize the checkpoint again with it."
    if settings.preprocessing != "auto":
        raise SettingError(f"{_SETTING} is {settings.preprocessing}, {made}")
    stated = settings.preprocessing_facts.stated
    if stated:
        name = stated[0]
        raise SettingError(f"{ENV_PREFIX}{name.upper()} is {getattr(settings, name)}, {made}")
    own = contents.preprocessing_beside
    if own is None:
        return recorded
    base = recorded
    if own.preset is not None:
        base = Decision(_named(own.preset, "resnet50", OWN_PREPROCESSING, CheckpointError), OWN_PREPROCESSING)
    beside = _with(own, base, OWN_PREPROCESSING, CheckpointError, _members)
    if beside.value != recorded.value:
        raise CheckpointError(
            f"{OWN_PREPROCESSING} beside it says {beside.value.describe()}, but this model was quantized for "
            f"{recorded.value.describe()}: move it elsewhere, or quantize the checkpoint again with it."
        )
    return recorded


def preprocessing_notes(contents: Contents, decision: Decision[Preprocessing], architecture: str) -> Iterator[str]:
    """A sentence about the facts that the user's file beside the checkpoint overrides, or why it is not used."""
    if contents.preprocessing_beside is None:
        return
    if OWN_PREPROCESSING not in decision.source:
        if decision.source.startswith(_SETTING):
            yield f"{OWN_PREPROCESSING} is not used: {_SETTING} goes before it."
        return
    stated = stated_preprocessing(contents, architecture)
    if stated is not None and not stated.is_assumed and stated.value != decision.value:
        yield f"{OWN_PREPROCESSING} goes before {stated.source}, which says: {stated.value.describe()}."


def preprocessing_warnings(contents: Contents, decision: Decision[Preprocessing], name: str) -> Iterator[str]:
    """A sentence if the input of a graph that normalises its input would be normalised twice."""
    deviation = _deviation_of(contents.graph)
    if deviation is not None and (decision.value.mean, decision.value.std) != (_ZEROS, deviation):
        levels = "0 to 1" if deviation == _ONES else "0 to 255"
        yield (
            f"{name} normalises its input itself and takes pixels of {levels}, but {decision.source} normalises them "
            f"before it ({decision.value.describe()}). Leave mean, std and scale out, unless it was trained so."
        )
