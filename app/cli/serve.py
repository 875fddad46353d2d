"""resnet-serve serve"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StartError
from ..logs import set_up_logging
from ..settings import Settings, unknown_variables
from .console import say_error, stderr

if TYPE_CHECKING:
    from ..pool import ModelFacts

logger = logging.getLogger(__name__)

_EXAMPLE = Path("app/data/example.jpg")


def serve(settings: Settings) -> None:
    """Serve the classifier over HTTP until Ctrl-C or SIGTERM."""
    from ..interpreter import hold_stop_signals, leave
    from ..resources import raise_open_file_limit

    # Before any other thread starts: the signals wait until the server has installed its handlers.
    hold_stop_signals()
    # Applies to every process that serves: this one and its children.
    raise_open_file_limit()
    from ..workers import serve as run
    from .progress import TerminalReporter

    log_format = settings.log_format
    if log_format == "auto":
        log_format = "text" if stderr.is_terminal else "json"
    # On a terminal lines have to keep their order among progress bars; elsewhere writing them must not block.
    set_up_logging(settings.log_level, log_format, in_background=not stderr.is_terminal)
    for line in unknown_variables():
        logger.warning("%s", line)
    failure: Exception | None
    try:
        with TerminalReporter() as reporter:
            failure = run(settings, reporter, _announce)
    except StartError as error:
        failure = error
    if failure is not None:
        if stderr.is_terminal:
            say_error(failure)
        else:
            logger.error("Error: %s", failure)
        leave(1)
    _say("Stopped.")
    leave(0)


def _announce(model: ModelFacts, address: str) -> None:
    """Print the end of the start: model, address, and a command to paste."""
    _say(f"Ready: {model.identity.name} ({model.identity.version}) on {model.device}, {address}/docs", "bold green")
    _say(f"Try:   {example_command(address)}")


def _say(text: str, style: str = "") -> None:
    """Print to a terminal; elsewhere write a log line."""
    if stderr.is_terminal:
        stderr.print(text, style=style, markup=False)
    else:
        logger.info("%s", text)


def example_command(address: str) -> str:
    """A curl command to paste: with the example file of a clone, or else with the picture that the service sends."""
    if _EXAMPLE.is_file():
        return f"curl -sS --data-binary @{_EXAMPLE} {address}/predict"
    return f"curl -sS {address}/static/example.jpg | curl -sS --data-binary @- {address}/predict"
