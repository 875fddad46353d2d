"""The base of the groups of settings, and the names that all of them share."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

ENV_PREFIX = "RESNET_"
VALUE_ERROR = "Value error, "
AutoOrCount = Literal["auto"] | Annotated[int, Field(ge=1)]


class Group(BaseModel):
    """Settings that belong together. The class docstring introduces their table in docs/configuration.md."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        # Settings are sent to other processes as JSON, where infinity ("no limit") would otherwise become null.
        ser_json_inf_nan="constants",
    )

    title: ClassVar[str]


def named_settings(text: str) -> str:
    """An error text of `preprocessing`, with the names of settings instead of the names of facts."""
    return re.sub(r"`(\w+)`", lambda match: f"{ENV_PREFIX}{match[1].upper()}", text)
