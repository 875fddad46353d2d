"""One service as several processes: front-ends that take requests and decode, and an engine for each model.

    supervisor      the command itself: holds the listening sockets, starts and restarts the other processes, handles
                    the signals, returns the exit status
    front-ends      RESNET_HTTP_WORKERS processes, each the whole HTTP service without a model: `front_end`
    engines         one process for each model, with its weights: `engine_process`

Each child has a socket to the supervisor (`control`), and each front-end one to each engine (`engine.wire`). The
supervisor creates them and passes them by descriptor; none of them has a name in a file system.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..decoding import describe_fitted_limits, fit_image_limits
from ..pool import ModelFacts
from ..progress import Reporter
from ..settings import Settings
from .division import count_workers

logger = logging.getLogger(__name__)

__all__ = ["serve"]


def serve(settings: Settings, reporter: Reporter, on_ready: Callable[[ModelFacts, str], None]) -> Exception | None:
    """Serve in as many processes as the settings say until told to stop; returns the error that ended it, or None.

    `on_ready` gets the model and the service's address. Raises `SettingError` if the address cannot be used, or the
    settings cannot be divided.
    """
    fitted = fit_image_limits(settings)
    if fitted is not settings:
        reporter.warn(describe_fitted_limits(fitted))
    settings = fitted
    workers = count_workers(settings)
    if workers == 1:
        from ..server.process import serve as serve_alone

        return serve_alone(settings, reporter, on_ready)
    from .together import serve_together

    return serve_together(settings, workers, reporter, on_ready)
