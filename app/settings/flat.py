"""All settings in one flat class: an environment variable `RESNET_NAME` and a flag `--name` each."""

from __future__ import annotations

import os
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ..errors import SettingError
from .batching import BatchingSettings
from .decoding import DecodingSettings
from .group import ENV_PREFIX, VALUE_ERROR, Group
from .limits import ClientSettings, LimitSettings
from .model import ModelSettings
from .server import AddressSettings, DeploymentSettings, LogSettings


# pydantic lists the fields of the last base first.
class Settings(
    LogSettings,
    DeploymentSettings,
    ClientSettings,
    LimitSettings,
    BatchingSettings,
    DecodingSettings,
    ModelSettings,
    AddressSettings,
    BaseSettings,
):
    """The settings of the service, read once at its start."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags take precedence over the environment. No .env file is read."""
        return init_settings, env_settings


# In the order of their fields. Groups that only combine others have no title.
GROUPS: tuple[type[Group], ...] = tuple(
    each for each in reversed(Settings.__mro__) if issubclass(each, Group) and "title" in vars(each)
)


def load_settings(**flags: Any) -> Settings:
    """Settings from flags (those that are not None), else the environment, else the defaults.

    Raises `SettingError` with a line for each wrong setting.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingError("\n".join(_explain(error))) from None


def unknown_variables() -> list[str]:
    """A line for each RESNET_ variable in the environment that is not a setting, with the most similar setting.

    They are warnings, because Kubernetes adds variables such as RESNET_SERVICE_HOST beside a service named "resnet".
    """
    known = [name.upper() for name in Settings.model_fields]
    lines = []
    for name in sorted(key.removeprefix(ENV_PREFIX) for key in os.environ if key.startswith(ENV_PREFIX)):
        if name not in known:
            close = get_close_matches(name, known, n=1, cutoff=0.75)
            hint = f" Did you mean {ENV_PREFIX}{close[0]}?" if close else ""
            lines.append(f"{ENV_PREFIX}{name} is not a setting and is ignored.{hint}")
    return lines


def _explain(error: ValidationError) -> list[str]:
    """A line for each wrong setting: its names, its value, and the reason."""
    lines: list[str] = []
    faults: dict[str, tuple[Any, list[str]]] = {}
    for item in error.errors():
        if not item["loc"]:
            lines.append(item["msg"].removeprefix(VALUE_ERROR))
            continue
        _, reasons = faults.setdefault(str(item["loc"][0]), (item["input"], []))
        reason = item["msg"].removeprefix(VALUE_ERROR)
        reasons.append(reason[0].lower() + reason[1:])
    for name, (given, reasons) in faults.items():
        names = f"{ENV_PREFIX}{name.upper()} (--{name.replace('_', '-')})"
        lines.append(f"{names} cannot be {given!r}: {' or '.join(reasons)}. {Settings.model_fields[name].description}")
    return lines
