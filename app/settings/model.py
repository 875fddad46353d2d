"""Settings that belong to a model: its checkpoint, and the backend that runs it."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from ..resources import available_cpus
from .checkpoint import CheckpointSettings
from .group import AutoOrCount, Group


class BackendSettings(Group):
    """What runs the network, and on which device."""

    title: ClassVar[str] = "Backend"

    backend: Literal["auto", "torch", "onnx", "null"] = Field(
        "auto",
        description=(
            "What runs the network. auto: onnx on the CPU and for an ONNX file, torch on CUDA. "
            "null needs no weights and answers at once, to measure the service alone."
        ),
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto (CUDA, else CPU), cpu, cuda or cuda:N."
    )
    precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description=(
            "Number format of the network. auto: on a CUDA GPU with tensor cores float16, or the next that holds the "
            "network; else float32."
        ),
    )
    compute_threads: AutoOrCount = Field(
        "auto", description="Threads of the network on CPU. auto: the CPUs it may use."
    )

    @property
    def compute_thread_count(self) -> int:
        """Threads of the network on CPU."""
        return available_cpus() if self.compute_threads == "auto" else self.compute_threads


class ModelSettings(BackendSettings, CheckpointSettings):
    """The settings that loading a model needs; all others belong to the service."""

    @model_validator(mode="after")
    def _null_takes_no_weights(self) -> Self:
        if self.backend == "null" and self.weights is not None:
            raise ValueError("RESNET_BACKEND null needs no weights: unset RESNET_WEIGHTS or choose another backend.")
        return self

    def model_settings(self) -> ModelSettings:
        """A copy of these settings, without the service's settings if this object has them."""
        return ModelSettings.model_construct(
            _fields_set=self.model_fields_set & ModelSettings.model_fields.keys(),
            **{name: getattr(self, name) for name in ModelSettings.model_fields},
        )

    def export_settings(self) -> dict[str, str]:
        """The settings that an artifact depends on, as text; they are a part of its key."""
        return {name: str(getattr(self, name)) for name in EXPORT_SETTINGS}


# These do not change an artifact. A new setting of the model counts as one that does.
_NOT_EXPORTED = frozenset(
    {
        *("weights_fallback", "cache_dir", "download_mirror"),  # where files come from: their bytes are in the key
        *("model_name", "min_agreement"),  # read when the model is loaded
        *("backend", "device", "precision", "compute_threads"),  # read when the artifact is loaded
    }
)
EXPORT_SETTINGS = tuple(name for name in ModelSettings.model_fields if name not in _NOT_EXPORTED)
