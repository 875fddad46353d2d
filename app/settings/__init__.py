"""The settings of the service, in groups behind one flat class; `ModelSettings` are those that belong to a model."""

from .batching import BatchingSettings
from .checkpoint import SWITCHES, CheckpointSettings
from .decoding import DecodingSettings
from .flat import GROUPS, Settings, load_settings, unknown_variables
from .group import ENV_PREFIX, VALUE_ERROR, Group, named_settings
from .limits import LimitSettings
from .model import EXPORT_SETTINGS, BackendSettings, ModelSettings
from .preprocessing import PREPROCESSING_FACTS
from .server import LogSettings
from .tables import show_default

__all__ = [
    "ENV_PREFIX",
    "EXPORT_SETTINGS",
    "GROUPS",
    "PREPROCESSING_FACTS",
    "SWITCHES",
    "VALUE_ERROR",
    "BackendSettings",
    "BatchingSettings",
    "CheckpointSettings",
    "DecodingSettings",
    "Group",
    "LimitSettings",
    "LogSettings",
    "ModelSettings",
    "Settings",
    "load_settings",
    "named_settings",
    "show_default",
    "unknown_variables",
]
