"""The listeners and the metrics folder of a supervisor: created before its first child, removed after its last."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from ..errors import SettingError
from ..metrics import SharedFiles
from ..progress import Reporter
from ..server.listening import address_of, listen_together
from ..settings import Settings
from .division import divide
from .engines import ENGINE
from .supervisor import OnReady, Supervisor, front_end_name

logger = logging.getLogger(__name__)


def serve_together(settings: Settings, workers: int, reporter: Reporter, on_ready: OnReady) -> Exception | None:
    """`workers.serve` with `workers` front-ends and a separate engine process."""
    if settings.log_format == "auto":
        settings = settings.model_copy(update={"log_format": "text" if os.isatty(sys.stderr.fileno()) else "json"})
    divided = divide(settings, workers)
    with ExitStack() as held:
        listeners = [held.enter_context(listener) for listener in listen_together(settings, workers)]
        address = address_of(settings, listeners[0])
        folder = _metrics_folder(workers)
        try:
            logger.info(
                "Listening on %s with %d front-end processes; /healthz answers, /readyz will once the model is loaded.",
                address,
                workers,
            )
            supervisor = Supervisor(
                settings, divided, listeners, folder, reporter, lambda facts: on_ready(facts, address)
            )
            return asyncio.run(supervisor.run())
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _metrics_folder(workers: int) -> Path:
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="resnet-serve-"))
        for name in (ENGINE, *(front_end_name(number) for number in range(workers))):
            SharedFiles(folder, name).create()
    except OSError as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise SettingError(
            f"Several processes share their metrics in files, and none can be written to {tempfile.gettempdir()}: "
            f"{error.strerror}. Set TMPDIR to a folder with some megabytes of room, or RESNET_HTTP_WORKERS to 1."
        ) from None
    return folder
