"""Facts of a preprocessing in settings and preprocessing.json, and the preprocessing that results.

Errors have the facts' names in backticks, for the caller to replace by those of its settings or members.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from .types import Interpolation, Preprocessing, Resizer

MAX_SIDE = 4096
# A mean or a deviation beyond this is none of fractions: it is of grey levels.
_MOST_OF_FRACTIONS = 2.0
_LARGEST = 1e6
_SMALLEST_DEVIATION = 1e-6
_SIDES = re.compile(r"(\d{1,5})(?:\s*[x×]\s*(\d{1,5}))?")
_NUMBERS = "one number, or three separated by commas"

Three = tuple[float, float, float]
Size = tuple[int, int]
Scale = Literal["unit", "levels", "signed"]


def _sides(value: Any, words: str) -> tuple[int, ...]:
    """One side or height and width, of 256, "256", "256x192" or [256, 192]."""
    if isinstance(value, str):
        match = _SIDES.fullmatch(value.strip())
        value = [int(side) for side in match.groups() if side is not None] if match else None
    sides = [value] if isinstance(value, int) else value
    if not isinstance(sides, list | tuple) or not all(type(side) is int for side in sides) or len(sides) not in (1, 2):
        raise ValueError(f"it is {words}")
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise ValueError(f"sides are of 1 to {MAX_SIDE} pixels")
    return tuple(sides)


def parse_resize(value: Any) -> Any:
    if value in (None, "squash", "none"):
        return value
    sides = _sides(value, 'a short side such as 256, height x width such as 256x192, "squash" or "none"')
    return sides[0] if len(sides) == 1 else sides


def parse_crop(value: Any) -> Any:
    if value in (None, "none"):
        return value
    sides = _sides(value, 'a side such as 224, height x width such as 224x192, or "none"')
    return (sides[0], sides[-1])


def parse_numbers(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = [float(part) for part in value.split(",")]
        except ValueError:
            raise ValueError(f"it is {_NUMBERS}") from None
    numbers = value if isinstance(value, list | tuple) else [value]
    if len(numbers) not in (1, 3) or not all(type(each) in (int, float) for each in numbers):
        raise ValueError(f"it is {_NUMBERS}")
    if not all(abs(each) < _LARGEST for each in numbers):  # which no NaN is
        raise ValueError(f"its numbers are finite, and below {_LARGEST:,.0f}")
    return tuple(float(each) for each in numbers) * (3 // len(numbers))


def parse_deviations(value: Any) -> Any:
    numbers = parse_numbers(value)
    if numbers is not None and min(numbers) < _SMALLEST_DEVIATION:
        raise ValueError("a deviation divides, and so is above 0")
    return numbers


PARSERS = {"resize": parse_resize, "crop": parse_crop, "mean": parse_numbers, "std": parse_deviations}
"""Of facts that are written in more than one way; they raise ValueError."""


class PreprocessingFacts(BaseModel):
    """What is stated of a preprocessing; None of what is not. The schema of a preprocessing.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str | None = None
    """The name of a whole preprocessing that the others change."""
    resize: Annotated[int | Size | Literal["squash", "none"] | None, BeforeValidator(parse_resize)] = None
    """The short side; height and width; squash: to the crop's; none: no resize."""
    crop: Annotated[Size | Literal["none"] | None, BeforeValidator(parse_crop)] = None
    """Height and width; none: all of what the image is squashed to."""
    interpolation: Interpolation | None = None
    mean: Annotated[Three | None, BeforeValidator(parse_numbers)] = None
    std: Annotated[Three | None, BeforeValidator(parse_deviations)] = None
    channels: Literal["rgb", "bgr"] | None = None
    """The order that the network takes them in, and that `mean` and `std` have."""
    scale: Scale | None = None
    """The range of the pixels that `mean` is taken from and `std` divides: 0 to 1, 0 to 255, or -1 to 1. Where it is
    given, a mean and a deviation that are not are 0 and 1; where it is not, it is unit."""
    resizer: Resizer | None = None
    crop_offset: Literal["even", "floor"] | None = None
    """Of a crop that cannot be centred exactly: torchvision's way, or Hugging Face's."""

    @model_validator(mode="after")
    def _scales_agree(self) -> PreprocessingFacts:
        largest = max(map(abs, (*(self.mean or ()), *(self.std or ()))), default=0)
        if self.scale != "levels" and largest > _MOST_OF_FRACTIONS:
            raise ValueError(
                f"a mean or std of {largest:g} is of grey levels from 0 to 255: set `scale` to levels with it, "
                f"or divide `mean` and `std` by 255"
            )
        if self.scale == "levels" and self.mean is not None and 0 < max(map(abs, self.mean)) <= 1:
            raise ValueError(
                f"a mean of {max(map(abs, self.mean)):g} is of fractions from 0 to 1, and `scale` is levels: set "
                f"`scale` to unit, or multiply `mean` and `std` by 255"
            )
        return self

    @property
    def stated(self) -> tuple[str, ...]:
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)

    def completes(self, base: Preprocessing) -> bool:
        """Whether nothing of `base` is left, but for what nearly all preprocessings have alike."""
        normalised = self.scale is not None or (self.mean is not None and self.std is not None)
        sized = self.resize is not None and self.crop is not None
        usual = (
            (self.channels is not None or not base.is_bgr)
            and (self.resizer is not None or base.resizer == "pillow")
            and (self.crop_offset is not None or not base.floor_crop)
        )
        return sized and self.interpolation is not None and normalised and usual

    def applied_to(self, base: Preprocessing) -> Preprocessing:
        """`base` with what is stated here. Raises ValueError for what does not go together."""
        changed = self._normalised(self._sized(base))
        if self.channels is not None:
            changed = replace(changed, is_bgr=self.channels == "bgr")
        if self.crop_offset is not None:
            changed = replace(changed, floor_crop=self.crop_offset == "floor")
        changed = replace(
            changed,
            interpolation=self.interpolation or changed.interpolation,
            resizer=self.resizer or changed.resizer,
        )
        _check_filter(changed)
        return changed

    def _sized(self, base: Preprocessing) -> Preprocessing:
        if self.resize is None and self.crop is None:
            return base
        sized = base
        # Nothing is cut off: then a size that is given is the whole one.
        is_whole = base.is_resized and base.resize_short_side is None and base.squash is None
        if isinstance(self.resize, int):
            sized = replace(base, resize_short_side=self.resize, squash=None, is_resized=True)
        elif self.resize is not None:
            squash = None if isinstance(self.resize, str) else self.resize
            sized = replace(base, resize_short_side=None, squash=squash, is_resized=self.resize != "none")
        if self.crop == "none":
            if sized.resize_short_side is not None or not sized.is_resized:
                raise ValueError("`crop` can be none where `resize` is height x width or squash, and is a size else")
            sized = replace(sized, crop=sized.squash or sized.crop)
        elif self.crop is not None:
            sized = replace(sized, crop=self.crop)
        elif is_whole and sized.squash is not None:
            sized = replace(sized, crop=sized.squash)
        if sized.squash == sized.crop:
            sized = replace(sized, squash=None)
        least = sized.squash or ((sized.resize_short_side,) * 2 if sized.resize_short_side else sized.crop)
        if sized.crop[0] > least[0] or sized.crop[1] > least[1]:
            to = f"a short side of {least[0]}" if sized.squash is None else f"{least[0]}×{least[1]}"
            raise ValueError(
                f"the crop of {sized.crop[0]}×{sized.crop[1]} is larger than what the image is resized to, {to}: "
                f"set `resize` and `crop` so that the crop is inside"
            )
        return sized

    def _normalised(self, base: Preprocessing) -> Preprocessing:
        mean, std = self.mean, self.std
        if self.scale is not None:
            mean, std = mean or (0.0,) * 3, std or (1.0,) * 3
        mean = base.mean if mean is None else _three(_as_fraction(each, self.scale) for each in mean)
        std = base.std if std is None else _three(each / _RANGES[self.scale or "unit"] for each in std)
        return replace(base, mean=mean, std=std)


# How long the range of a scale is, in ranges from 0 to 1.
_RANGES: Mapping[Scale, float] = {"unit": 1.0, "levels": 255.0, "signed": 2.0}


def _as_fraction(mean: float, scale: Scale | None) -> float:
    """What is taken from pixels of 0 to 1 instead."""
    return (mean + 1) / 2 if scale == "signed" else mean / _RANGES[scale or "unit"]


def _three(numbers: Any) -> Three:
    first, second, third = numbers
    return first, second, third


# What torchvision resizes tensors with; the others are Pillow's alone.
_FILTERS: Mapping[Resizer, tuple[Interpolation, ...]] = {
    "pillow": tuple(Interpolation),
    "torchvision": (
        *(Interpolation.NEAREST, Interpolation.BILINEAR),
        *(Interpolation.BICUBIC, Interpolation.LANCZOS),
    ),
    "torchvision-no-antialias": (Interpolation.NEAREST, Interpolation.BILINEAR, Interpolation.BICUBIC),
}


def can_resize(resizer: Resizer, interpolation: Interpolation) -> bool:
    return interpolation in _FILTERS[resizer]


def _check_filter(preprocessing: Preprocessing) -> None:
    resizer, interpolation = preprocessing.resizer, preprocessing.interpolation
    if not can_resize(resizer, interpolation):
        names = ", ".join(each.value for each in _FILTERS[resizer])
        raise ValueError(
            f"the resizer {resizer} has no interpolation {interpolation.value}: set `interpolation` to one of {names}, "
            f"or `resizer` to pillow"
        )


def document_of(preprocessing: Preprocessing) -> dict[str, Any]:
    """The whole of a preprocessing as a preprocessing.json has it."""
    resize: Any = preprocessing.resize_short_side
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    # Numbers that would be taken for those of levels are written as such.
    scale: Scale = "unit" if max(abs(mean).max(), std.max()) <= _MOST_OF_FRACTIONS else "levels"
    if resize is None:
        resize = "none" if not preprocessing.is_resized else list(preprocessing.squash or ()) or "squash"
    return {
        "resize": resize,
        "crop": list(preprocessing.crop),
        "interpolation": preprocessing.interpolation.value,
        "resizer": preprocessing.resizer,
        "mean": (mean * _RANGES[scale]).tolist(),
        "std": (std * _RANGES[scale]).tolist(),
        "scale": scale,
        "channels": "bgr" if preprocessing.is_bgr else "rgb",
        "crop_offset": "floor" if preprocessing.floor_crop else "even",
    }
