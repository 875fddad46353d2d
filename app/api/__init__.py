"""The doors: HTTP in, HTTP out. What a door needs of the service, it takes from the lifespan's state."""

from .access_log import AccessLog
from .cors import Cors
from .docs import describe_openapi
from .docs import router as docs_router
from .draining import Drain, EndOfGrace
from .early_refusals import EarlyRefusals
from .error_reference import router as errors_router
from .health import router as health_router
from .middleware import Admission, BodyLimits, EarlyAnswers, Guard, RequestContext
from .open_files import OpenFiles
from .paths import fixed_paths
from .predict import ShortWay
from .predict import router as predict_router
from .problems import problem_handlers
from .protocol import SPARE_CONNECTIONS, ConnectionLimits, HttpProtocol
from .service import Service, State
from .turns import Turns
from .uploads import UploadLimits, Uploads

__all__ = [
    "SPARE_CONNECTIONS",
    "AccessLog",
    "Admission",
    "BodyLimits",
    "ConnectionLimits",
    "Cors",
    "Drain",
    "EarlyAnswers",
    "EarlyRefusals",
    "EndOfGrace",
    "Guard",
    "HttpProtocol",
    "OpenFiles",
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
