"""The models that are served, by name and version: loaded, leased to requests, swapped and unloaded."""

from .lease import Lease, PooledModel
from .model import LoadedModel, ModelFacts
from .pool import Pool
from .serving import serve_model
from .unknown import ModelConflict, ModelNotFound

__all__ = ["Lease", "LoadedModel", "ModelConflict", "ModelFacts", "ModelNotFound", "Pool", "PooledModel", "serve_model"]
