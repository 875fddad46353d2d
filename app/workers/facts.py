"""What is known of a model, as one process tells it another."""

from __future__ import annotations

from dataclasses import fields

from pydantic import TypeAdapter

from ..engine import Engine
from ..engine.segment import SlotLayout
from ..loading import LoadedModel, ModelFacts

_FACTS: TypeAdapter[ModelFacts] = TypeAdapter(ModelFacts)


def facts_of(model: LoadedModel) -> ModelFacts:
    """All of it but its engine."""
    return ModelFacts(**{field.name: getattr(model, field.name) for field in fields(ModelFacts)})


def facts_to_json(facts: ModelFacts) -> bytes:
    return _FACTS.dump_json(facts)


def facts_from_json(data: bytes) -> ModelFacts:
    """Raises pydantic's `ValidationError` where it is none."""
    return _FACTS.validate_json(data)


def with_engine(facts: ModelFacts, engine: Engine) -> LoadedModel:
    return LoadedModel(**{field.name: getattr(facts, field.name) for field in fields(ModelFacts)}, engine=engine)


def layout_for(facts: ModelFacts, images: int) -> SlotLayout:
    """Slots for as many images as one front-end can have at the engine."""
    height, width = facts.preprocessing.crop
    return SlotLayout(height, width, facts.score_count, images)
