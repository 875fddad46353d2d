"""Why a request cannot have the model that it names."""

from __future__ import annotations


class ModelNotFound(LookupError):
    """No model of this name and version is served."""


class ModelConflict(Exception):
    """The model is being loaded or unloaded, or is there already."""
