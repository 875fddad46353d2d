"""This service's own protocol: POST /predict and /predict/batch, with errors as RFC 9457 problems."""

from .endpoints import native_endpoints
from .problems import PROBLEMS

__all__ = ["PROBLEMS", "native_endpoints"]
