"""The facts of a model as messages between processes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter

from ..engine.segment import SlotLayout
from ..pool import ModelFacts

_FACTS: TypeAdapter[ModelFacts] = TypeAdapter(ModelFacts)


def fields_of(facts: ModelFacts) -> dict[str, Any]:
    """The arguments of a constructor: of `ModelFacts`, or of a class derived from it."""
    return {field.name: getattr(facts, field.name) for field in fields(ModelFacts)}


def facts_to_json(facts: ModelFacts) -> bytes:
    return _FACTS.dump_json(facts)


def facts_from_json(data: bytes) -> ModelFacts:
    """Raises pydantic's `ValidationError` for invalid data."""
    return _FACTS.validate_json(data)


def layout_for(facts: ModelFacts, images: int) -> SlotLayout:
    """Slots for as many images as one front-end can have at the engine at once."""
    height, width = facts.preprocessing.crop
    return SlotLayout(height, width, facts.score_count, images)
