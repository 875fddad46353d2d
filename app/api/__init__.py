"""The doors: HTTP in, HTTP out. What a door needs of the service, it takes from the lifespan's state."""

from .docs import describe_openapi
from .docs import router as docs_router
from .health import router as health_router
from .middleware import BodyLimits, EarlyAnswers, Guard, RequestContext
from .predict import router as predict_router
from .problems import problem_handlers
from .protocol import HttpProtocol
from .service import Service, State

__all__ = [
    "BodyLimits",
    "EarlyAnswers",
    "Guard",
    "HttpProtocol",
    "RequestContext",
    "Service",
    "State",
    "describe_openapi",
    "docs_router",
    "health_router",
    "predict_router",
    "problem_handlers",
]
