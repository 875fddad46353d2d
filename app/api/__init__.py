"""The HTTP API as an ASGI app's parts: routes, middleware, errors."""

from .access_log import AccessLog
from .cors import Cors
from .docs import describe_openapi
from .docs import router as docs_router
from .draining import Drain, EndOfGrace
from .error_reference import router as errors_router
from .health import router as health_router
from .middleware import Admission, BodyLimits, EarlyAnswers, Guard, RequestContext
from .paths import fixed_paths
from .predict import ShortWay
from .predict import router as predict_router
from .problems import problem_handlers
from .service import Service, State
from .turns import Turns
from .uploads import UploadLimits, Uploads

__all__ = [
    "AccessLog",
    "Admission",
    "BodyLimits",
    "Cors",
    "Drain",
    "EarlyAnswers",
    "EndOfGrace",
    "Guard",
    "RequestContext",
    "Service",
    "ShortWay",
    "State",
    "Turns",
    "UploadLimits",
    "Uploads",
    "describe_openapi",
    "docs_router",
    "errors_router",
    "fixed_paths",
    "health_router",
    "predict_router",
    "problem_handlers",
]
