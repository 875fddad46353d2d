"""The JSON of native answers, as the OpenAPI document describes it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ...types import Classification, DecodeMode, ModelIdentity, Prediction


class ModelBody(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    name: str = Field(examples=["resnet50"])
    version: str = Field(description="First 8 hex digits of the weights' SHA-256.", examples=["11ad3fa6"])

    @classmethod
    def of(cls, identity: ModelIdentity) -> ModelBody:
        return cls(name=identity.name, version=identity.version)


class PredictionBody(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    class_id: int = Field(description="Index of the class; labels need not be unique, this is.", examples=[409])
    label: str = Field(examples=["analog clock"])
    probability: float = Field(ge=0, le=1, examples=[0.8473])

    @classmethod
    def of(cls, prediction: Prediction) -> PredictionBody:
        return cls(class_id=prediction.class_id, label=prediction.label, probability=prediction.probability)


class Answer(BaseModel):
    """The most probable classes of one image, best first."""

    model_config = ConfigDict(from_attributes=True)
    model: ModelBody
    predictions: list[PredictionBody]

    @classmethod
    def of(cls, classification: Classification) -> Answer:
        return cls.model_validate(classification)


class Problem(BaseModel):
    """RFC 9457 problem details: the one shape of every error."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(
        description="A page of this service that says what the code means.", examples=["/docs/errors#image_corrupt"]
    )
    title: str = Field(examples=["Corrupt image"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["The image is truncated or damaged and could not be decoded."])
    code: str = Field(description="What to branch on; docs/errors.md lists the codes.", examples=["image_corrupt"])
    request_id: str
    retryable: bool = Field(description="Whether the same request may succeed later.", examples=[False])


class BatchPrediction(BaseModel):
    status: int = Field(200, examples=[200])
    predictions: list[PredictionBody]

    @classmethod
    def of(cls, classification: Classification) -> BatchPrediction:
        return cls(status=200, predictions=_predictions(classification))


class BatchAnswer(BaseModel):
    """One result an image, in the order sent: predictions, or a problem with its own status."""

    model: ModelBody
    results: list[BatchPrediction | Problem]


class Health(BaseModel):
    """What is true of the service now."""

    status: str = Field(
        description="ok: a restart would not help. Where it would, the answer is a problem.", examples=["ok"]
    )
    state: str = Field(
        description=(
            "loading, warming, ready, stuck (no decoder is free), restarting (the model's process has ended) or "
            "draining."
        ),
        examples=["ready"],
    )
    ready: bool
    reason: str | None = Field(None, description="Why it is not ready.")
    model: ModelBody | None = None
    backend: str | None = Field(None, examples=["torch"])
    device: str | None = Field(None, examples=["cpu (2 threads, float32)"])
    decode: DecodeMode = Field(description="How images are decoded: RESNET_DECODE.")
    warnings: list[str] = Field([], description="Assumptions about the checkpoint that could be wrong.")
    version: str = Field(description="Of resnet-serve.", examples=["0.1.0"])


def _predictions(classification: Classification) -> list[PredictionBody]:
    return [PredictionBody.of(prediction) for prediction in classification.predictions]


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entries for the errors a route may answer with."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


_MEANINGS = {
    400: "The request is malformed or carries no image.",
    408: "The body did not come in time.",
    413: "The body is too large, or carries too many images.",
    415: "The bytes are no image in a supported format, or the body is encoded.",
    422: "The image is damaged or too large, or a parameter is out of range.",
    500: "The server failed, or the model's output is not finite.",
    503: "Not ready, overloaded or shutting down. Retry-After says when to try again.",
    504: "The request's deadline passed.",
}
