"""The doors: HTTP in, HTTP out. What a door needs of the service, it takes from the lifespan's state."""

from .access_log import AccessLog
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
from .protocol import ConnectionLimits, HttpProtocol
from .service import Service, State
from .uploads import UploadLimits, Uploads

__all__ = [
    "AccessLog",
    "Admission",
    "BodyLimits",
    "ConnectionLimits",
    "Drain",
    "EarlyAnswers",
    "EndOfGrace",
    "Guard",
    "HttpProtocol",
    "RequestContext",
    "Service",
    "ShortWay",
    "State",
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
