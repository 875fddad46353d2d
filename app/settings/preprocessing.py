"""Settings of the preprocessing: a preset, and the facts that change it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from .group import VALUE_ERROR, Group, named_settings

if TYPE_CHECKING:
    from ..preprocessing import PreprocessingFacts


class PreprocessingSettings(Group):
    """How images are prepared for the network."""

    title: ClassVar[str] = "Preprocessing"

    preprocessing: str = Field(
        "auto",
        description=(
            "How images are prepared: a preset (torchvision-v1, torchvision-v2, timm, timm-tv2, timm-half, "
            "huggingface, huggingface-torchvision, keras, keras-nearest, keras-v2, keras-v2-nearest, tf-slim), a "
            "torchvision weight name, or auto to tell it from the checkpoint. The settings below change a fact each."
        ),
    )
    resize: str | None = Field(
        None,
        description=(
            "What images are resized to: the short side (256), height x width (256x256: squashed), squash (to the "
            "crop's size) or none (not resized). Unset: as the preprocessing has it."
        ),
    )
    crop: str | None = Field(
        None,
        description=(
            "What is cut out of the centre: a side (224), height x width (224x192), or none (all of what the image is "
            "squashed to). Unset: as the preprocessing has it."
        ),
    )
    interpolation: Literal["auto", "nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = Field(
        "auto", description="The filter of the resize. auto: as the preprocessing has it."
    )
    resizer: Literal["auto", "pillow", "torchvision", "torchvision-no-antialias"] = Field(
        "auto",
        description=(
            "Whose resize it is: Pillow's, torchvision's of tensors, or that without antialiasing (as OpenCV and "
            "tf.image resize). auto: as the preprocessing has it."
        ),
    )
    mean: str | None = Field(
        None,
        description=(
            "What is taken from each channel: one number or three, separated by commas, in the order of channels and "
            "the range of scale. Unset: as the preprocessing has it."
        ),
    )
    std: str | None = Field(
        None, description="What each channel is then divided by, given as the mean. Unset: as the preprocessing has it."
    )
    scale: Literal["auto", "unit", "levels", "signed"] = Field(
        "auto",
        description=(
            "The range of the pixels that mean and std are of: unit (0 to 1), levels (0 to 255) or signed (-1 to 1). "
            "With it a mean and a std that are unset are 0 and 1. auto: unit, for those that are set."
        ),
    )
    channels: Literal["auto", "rgb", "bgr"] = Field(
        "auto", description="The order in which the network takes the channels. auto: as the preprocessing has it."
    )

    @property
    def preprocessing_facts(self) -> PreprocessingFacts:
        """The preprocessing facts that are set, without the preset."""
        from ..preprocessing import PreprocessingFacts  # imports numpy, which a health check does not need

        given = {name: getattr(self, name) for name in PREPROCESSING_FACTS}
        return PreprocessingFacts.model_validate({name: value for name, value in given.items() if value != "auto"})

    @field_validator("resize", "crop", "mean", "std")
    @classmethod
    def _states_a_fact(cls, value: Any, field: ValidationInfo) -> Any:
        if value is not None:
            from ..preprocessing import PARSERS

            PARSERS[str(field.field_name)](value)
        return value

    @model_validator(mode="after")
    def _facts_agree(self) -> Self:
        if all(getattr(self, name) in (None, "auto") for name in PREPROCESSING_FACTS):
            return self
        try:
            _ = self.preprocessing_facts
        except ValidationError as error:
            raise ValueError(named_settings(error.errors()[0]["msg"].removeprefix(VALUE_ERROR)) + ".") from None
        return self


# Each of these changes one fact of the preprocessing.
PREPROCESSING_FACTS = tuple(name for name in PreprocessingSettings.model_fields if name != "preprocessing")
