"""resnet-serve download"""

from __future__ import annotations

from typing import Annotated

import typer

from ..logs import set_up_logging
from ..settings import Settings
from .console import stdout


def download(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="A torchvision weight name of the architecture.")] = "IMAGENET1K_V2",
) -> None:
    """Download published weights into the cache folder and print where they are."""
    from ..checkpoints import download as fetch
    from ..checkpoints import find_by_name, published_architecture
    from .progress import TerminalReporter

    set_up_logging(settings.log_level)
    with TerminalReporter() as reporter:
        reporter.step(f"Looking up {name}")
        path = fetch(settings, find_by_name(published_architecture(settings), name), reporter)
    stdout.print(str(path), markup=False)
