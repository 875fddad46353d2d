"""A child of the supervisor: `python -m app.workers ROLE DESCRIPTOR`, started and ended by `Child`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from ..interpreter import leave
from ..logs import set_up_logging, share_output
from ..metrics import Metrics, SharedFiles
from ..processes.channel import Channel
from ..settings import Settings


def main(role: str, descriptor: str) -> None:
    # Some service managers signal every process of a service: only the supervisor acts on that.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    control = Channel.inherited(descriptor)
    start = control.receive()
    # The supervisor may have stopped while this process was starting: then there is no `start` message.
    if start is None or start.kind != "start":
        return
    settings = Settings.model_validate_json(start.fields["settings"])
    *descriptors, log_lock = start.descriptors
    set_up_logging(settings.log_level, "text" if settings.log_format == "text" else "json", in_background=True)
    share_output(log_lock)
    folder = os.environ["PROMETHEUS_MULTIPROC_DIR"]
    metrics = Metrics(SharedFiles(Path(folder), start.fields["name"]))
    if role == "engine":
        from .engine_process import serve_engine

        serve_engine(settings, control, metrics, *descriptors)
    else:
        from .front_end import Place, serve_front_end

        place = Place(start.fields["number"], start.fields["count"], start.fields["is_replacement"])
        leave(serve_front_end(settings, control, metrics, place, *descriptors))


if __name__ == "__main__":
    main(*sys.argv[1:])
