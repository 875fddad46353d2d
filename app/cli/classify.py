"""resnet-serve classify"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..errors import ServiceError
from ..logs import set_up_logging
from ..settings import Settings
from .console import stderr, stdout

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..pool import LoadedModel
    from ..types import Classification

_Outcome = tuple[Path, "Classification | str"]


def classify(
    settings: Settings,
    photos: Annotated[list[Path], typer.Argument(help="Image files.", metavar="PHOTO")],
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", help="How many classes to show.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a photo, as the server answers.")
    ] = False,
) -> None:
    """Classify photos from files, with the same answers as the server. Exit 1 if any could not be classified."""
    set_up_logging("warning" if settings.log_level == "info" else settings.log_level)
    outcomes = asyncio.run(_classify(settings, photos, top_k))
    for photo, outcome in outcomes:
        (_print_json if as_json else _print_table)(photo, outcome)
    if any(isinstance(outcome, str) for _, outcome in outcomes):
        sys.exit(1)


async def _classify(settings: Settings, photos: list[Path], top_k: int | None) -> list[_Outcome]:
    from ..classifier import Classifier
    from ..decoding import build_decoder
    from ..loading import load_model
    from ..metrics import Metrics
    from .progress import TerminalReporter

    metrics = Metrics()
    classifier = Classifier(build_decoder(settings, metrics), metrics, settings.longest_request_seconds)
    try:
        with TerminalReporter() as reporter, stderr.status("Loading the model …") as status:
            pooled = await classifier.pool.load(lambda: asyncio.to_thread(load_model, settings, metrics, reporter))
            model = pooled.model
            wanted = classifier.resolve_top_k(model, top_k)
            outcomes = []
            # A few at a time: enough for batches, and memory stays small for any number of photos.
            for first in range(0, len(photos), 16):
                status.update(f"Classifying {first + 1} of {len(photos)} …")
                group = photos[first : first + 16]
                outcomes += await asyncio.gather(*[_one(classifier, model, photo, wanted, settings) for photo in group])
            return outcomes
    finally:
        await classifier.close()


async def _one(classifier: Classifier, model: LoadedModel, photo: Path, top_k: int, settings: Settings) -> _Outcome:
    try:
        data = await asyncio.to_thread(photo.read_bytes)
    except OSError as error:
        return photo, f"Cannot be read: {error.strerror}."
    deadline = time.monotonic() + settings.request_timeout_ms / 1e3
    try:
        return photo, await classifier.classify(model, data, top_k, deadline)
    except ServiceError as error:
        logging.getLogger(__name__).debug("%s: %s", photo, error.code)
        return photo, error.detail


def _print_table(photo: Path, outcome: Classification | str) -> None:
    if isinstance(outcome, str):
        stderr.print(f"[bold red]{photo}[/]: {outcome}")
        return
    table = Table(title=f"{photo}  ({outcome.model.name}, {outcome.model.version})", title_justify="left")
    table.add_column("class", justify="right")
    table.add_column("label")
    table.add_column("probability", justify="right")
    table.add_column("", width=20)
    for prediction in outcome.predictions:
        bar = "█" * round(prediction.probability * 20)
        table.add_row(str(prediction.class_id), prediction.label, f"{prediction.probability:.4f}", f"[green]{bar}[/]")
    stdout.print(table)


def _print_json(photo: Path, outcome: Classification | str) -> None:
    from ..api.native.schemas import Answer

    if isinstance(outcome, str):
        document = {"photo": str(photo), "error": outcome}
    else:
        document = {"photo": str(photo)} | Answer.of(outcome).model_dump()
    stdout.print(json.dumps(document), markup=False)
