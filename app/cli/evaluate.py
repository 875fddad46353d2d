"""resnet-serve evaluate"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import SettingError, StartError
from ..logs import set_up_logging
from ..settings import Settings
from .console import stderr, stdout

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint
    from ..evaluation import Evaluation, Options


def evaluate(
    settings: Settings,
    checkpoint: Annotated[
        str, typer.Argument(metavar="PATH", help="A checkpoint, as inspect takes it, or a running service's URL.")
    ],
    photos: Annotated[
        Path,
        typer.Argument(
            metavar="PHOTOS",
            help="A folder of photos for each class, by label or index; a CSV of file and label; or photos alone.",
        ),
    ],
    most_photos: Annotated[int, typer.Option(min=1, help="Most photos that are used, chosen by chance.")] = 1000,
    alternatives_photos: Annotated[int, typer.Option(min=1, help="Most photos that an alternative is tried on.")] = 500,
    everything: Annotated[
        bool, typer.Option("--all", help="Try alternatives of every decision, not only of those that are assumed.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="SETTING",
            help="Try alternatives of this setting alone (stride_in, stem, pool, epsilon, preprocessing, channels, "
            "mean, resize, interpolation, crop, labels, activation), known or not. May be given again.",
        ),
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON; - prints it instead.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(metavar="F.png", help="Draw the report into this PNG.")] = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="OUT.safetensors", help="Write the checkpoint with what is better in it, if anything is."),
    ] = None,
    write_labels: Annotated[
        Path | None, typer.Option(metavar="labels.txt", help="Write the labels, if another order of them is better.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that exist, and write without labels' evidence.")
    ] = False,
) -> None:
    """Measure how right a checkpoint is on labelled photos, and find the settings that would make it more right.

    Alternatives of each decision that is assumed are tried on the same photos. One is recommended where it is better
    beyond chance.
    """
    from ..decoding import decode_limits
    from ..evaluation import Options, check_can_draw, draw, find_photos, is_url
    from ..files import write_whole
    from .evaluation_tables import show_evaluation, show_recommendation
    from .progress import StepBar

    set_up_logging("warning" if settings.log_level == "info" and stderr.is_terminal else settings.log_level)
    if picture is not None:
        check_can_draw()
    outputs = {"--picture": picture, "--write": write, "--write-labels": write_labels}
    if as_json is not None and str(as_json) != "-":
        outputs["--json"] = as_json
    for flag, path in outputs.items():
        _check_target(flag, path, force)
    found = find_photos(photos)
    for flag in ("--write", "--write-labels"):
        if outputs[flag] is not None and not found.is_labelled and not force:
            raise SettingError(
                f"{flag} needs photos with labels: without them a network can only be surer, and not shown to be "
                f"right. Label the photos, or write what is surest with --force."
            )
    options = Options(
        decode_limits(settings),
        threads=settings.compute_thread_count,
        device=settings.device,
        most_photos=most_photos,
        most_tried=alternatives_photos,
        everything=everything,
        only=tuple(only or ()),
    )
    with StepBar() as bar:
        if is_url(checkpoint):
            evaluation = _service(checkpoint, found, options, outputs, bar)
        else:
            model = _open(settings, checkpoint)
            if write is not None and model.graph is not None:
                raise SettingError("--write cannot write an ONNX graph: what is better is printed as settings.")
            from ..evaluation import evaluate as run

            evaluation = run(model, model.decisions, found, options, bar)
    written = _write(evaluation, write, write_labels)
    document = evaluation.document() | {"written": [str(path) for path in written]}
    text = json.dumps(document, ensure_ascii=False)
    try:
        if picture is not None:
            write_whole(picture, draw(evaluation))
        if "--json" in outputs:
            write_whole(outputs["--json"] or Path(), text.encode() + b"\n")
    except OSError as error:
        raise StartError(f"Cannot write {error.filename or picture}: {error.strerror or error}.") from None
    if as_json is not None and "--json" not in outputs:
        stdout.print(text, markup=False)
        return
    show_evaluation(evaluation)
    show_recommendation(evaluation, written)


def _service(url: str, found: Any, options: Options, outputs: dict[str, Path | None], bar: Any) -> Evaluation:
    from ..evaluation import evaluate_service

    for flag in ("--write", "--write-labels"):
        if outputs[flag] is not None:
            raise SettingError(f"{flag} needs the checkpoint itself: a service's answers are evaluated as they are.")
    if options.everything or options.only:
        raise SettingError("Alternatives cannot be tried of a running service: name its checkpoint instead.")
    return evaluate_service(url, found, options, bar)


def _open(settings: Settings, checkpoint: str) -> Checkpoint:
    """The checkpoint at a path, or the offline demo."""
    from ..checkpoints import Found, PublishedName, decide, locate, read
    from ..errors import CheckpointError

    source = locate(checkpoint)
    if isinstance(source, PublishedName):
        raise CheckpointError(f"{checkpoint} is no file or folder here.")
    with stderr.status(f"Reading {escape(checkpoint)} …"):
        opened = decide(read(Found(source), settings), settings)
    for warning in opened.warnings:
        stderr.print(f"[bold yellow]Warning:[/] {escape(warning)}")
    return opened


def _check_target(flag: str, path: Path | None, force: bool) -> None:
    """Refuse an unusable output file before minutes of work instead of afterwards."""
    if path is None:
        return
    if path.exists() and (not force or not path.is_file()):
        raise SettingError(f"{flag}: {path} exists. Remove it, name another, or replace it with --force.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingError(f"{flag}: {path} cannot be written: {path.parent} is no folder that can be written to.")


def _write(evaluation: Evaluation, target: Path | None, labels: Path | None) -> list[Path]:
    from ..checkpoints import write_converted
    from ..files import write_whole

    written = []
    if evaluation.converted is None:
        return []
    if target is not None:
        write_converted(evaluation.converted, target)
        written.append(target)
    if labels is not None and "labels" in dict(evaluation.settings):
        write_whole(labels, "".join(f"{label}\n" for label in evaluation.converted.labels).encode())
        written.append(labels)
    return written
