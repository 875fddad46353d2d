"""Errors of requests for a model that is not available."""

from __future__ import annotations


class ModelNotFound(LookupError):
    """No model of this name and version is served."""


class ModelConflict(Exception):
    """The model is being loaded or unloaded, or exists already."""
