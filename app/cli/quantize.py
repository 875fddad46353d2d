"""resnet-serve quantize"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from ..errors import SettingError
from ..logs import set_up_logging
from ..settings import Settings
from .console import stderr, stdout

if TYPE_CHECKING:
    from ..quantization import Report

logger = logging.getLogger(__name__)

_SHOWN = 10


def quantize(
    settings: Settings,
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="A folder of photos like those to be served.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write. [default: NAME.int8.onnx]")
    ] = None,
    method: Annotated[
        Literal["entropy", "percentile", "minmax"],
        typer.Option(help="How the range of each value is found from the photos."),
    ] = "percentile",
    keep_float: Annotated[
        str, typer.Option(help="Layers that stay in float32, the most damaging first: a number, or auto.")
    ] = "auto",
    reduce_range: Annotated[
        bool | None,
        typer.Option(help="Weights of 7 bits, for x86 CPUs without VNNI. [default: as this CPU is]"),
    ] = None,
    per_channel: Annotated[bool, typer.Option(help="A scale for each channel of a layer's weights.")] = True,
    most_photos: Annotated[int, typer.Option(min=16, help="Most photos that are used.")] = 1000,
    report: Annotated[Path | None, typer.Option(help="Draw the report into this PNG.", metavar="F.png")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that exist, and write a model that agrees too little.")
    ] = False,
) -> None:
    """Make an int8 model for CPUs from a checkpoint and a folder of photos, and report how it compares with float32.

    It is written only if its top-1 agreement reaches --min-agreement; otherwise the exit status is 1.
    """
    from ..checkpoints import open_checkpoint
    from ..images import DecodeLimits
    from ..quantization import FEW_PHOTOS, Options, check_can_draw, draw, read_photos, write
    from ..quantization import quantize as make
    from .progress import StepBar, TerminalReporter

    set_up_logging(settings.log_level)
    keep = _number(keep_float)
    if report is not None:
        check_can_draw()
    threads = settings.compute_thread_count
    with TerminalReporter() as reporter:
        for path in (output, report):
            _refuse_existing(path, force)
        checkpoint = open_checkpoint(settings, reporter, lambda: False)
        for warning in checkpoint.warnings:
            reporter.warn(warning)
        target = output or Path(f"{settings.model_name or checkpoint.architecture}.int8.onnx")
        _refuse_existing(target, force)
    with StepBar() as bar:
        found = read_photos(
            photos,
            checkpoint.preprocessing,
            DecodeLimits(
                int(settings.max_megapixels_jpeg * 1e6), int(settings.max_megapixels * 1e6), settings.max_side
            ),
            most=most_photos,
            threads=threads,
            progress=lambda done, total: bar("Reading photos", done, total),
        )
        for name, reason in found.skipped[:_SHOWN]:
            logger.warning("Skipped %s: %s", name, reason)
        if len(found.skipped) > _SHOWN:
            logger.warning("Skipped %d more.", len(found.skipped) - _SHOWN)
        if len(found) < FEW_PHOTOS:
            logger.warning(
                "%d photos are few: one of those held out is %.1f%% of the agreement. Use a hundred or more.",
                len(found),
                100 / (len(found) - len(found) // 2),
            )
        options = Options(
            method, per_channel, reduce_range, keep, least_agreement=settings.min_agreement, threads=threads
        )
        model, result = make(checkpoint, found, options, bar)
    is_good = result.record.agreement.top1 >= settings.min_agreement
    if is_good or force:
        write(model, target, replace=force)
    if report is not None:
        write(draw(result), report, replace=force)
    if as_json:
        document = result.document() | {"output": str(target) if is_good or force else None}
        stdout.print(json.dumps(document, ensure_ascii=False), markup=False)
    else:
        _print(result)
    if not is_good:
        stderr.print(
            f"[bold red]Error:[/] The top-1 agreement is {result.record.agreement.top1:.1%}, and --min-agreement is "
            f"{settings.min_agreement:.1%}: {'written, but serve refuses it' if force else 'not written'}. "
            f"Use more photos, another --method, or --keep-float with more layers."
        )
        sys.exit(1)
    if not as_json:
        lowered = result.record.agreement.top1 < Settings.model_fields["min_agreement"].default
        least = f" --min-agreement {settings.min_agreement}" if lowered else ""
        stdout.print(f"{target}  (serve it: resnet-serve serve --weights {target}{least})", markup=False)


def _number(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise SettingError(f"--keep-float cannot be {text!r}: it is a number of layers, or auto.")
    return int(text)


def _refuse_existing(path: Path | None, force: bool) -> None:
    """Refuse an existing output file before minutes of work instead of afterwards."""
    if path is None:
        return
    if path.exists() and (not force or not path.is_file()):
        raise SettingError(f"{path} exists. Remove it, name another, or replace it with --force.")
    if not path.parent.is_dir():
        raise SettingError(f"{path} cannot be written: there is no folder {path.parent}.")


def _print(report: Report) -> None:
    record = report.record
    agreement, speeds = record.agreement, record.speeds
    table = Table(title=f"{record.architecture} in int8 against float32", title_justify="left", show_header=False)
    table.add_row("photos", f"{record.calibration_images} to calibrate, {agreement.images} held out for this report")
    table.add_row("top-1 agreement", f"{agreement.top1:.1%}")
    table.add_row("top-5 agreement", f"{agreement.top5:.1%}")
    table.add_row(
        "probabilities differ", f"{agreement.mean_difference:.4f} on average, {agreement.worst_difference:.4f} at most"
    )
    table.add_row(
        "speed",
        f"{1 / speeds.int8_seconds:.1f} images/s against {1 / speeds.float32_seconds:.1f}: {speeds.ratio:.2f} × "
        f"(one at a time, {speeds.threads} threads)",
    )
    table.add_row("size", f"{report.int8_bytes / 1e6:.1f} MB against {report.float32_bytes / 1e6:.1f}")
    table.add_row("kept in float32", f"{len(record.kept_float)} of {record.layers} layers")
    table.add_row("calibration", f"{record.method}, weights {'per channel' if record.per_channel else 'per layer'}")
    table.add_row("cpu", record.cpu.describe() + (", weights of 7 bits" if record.reduce_range else ""))
    stdout.print(table)
    if not report.disagreements:
        return
    others = Table("photo", "float32", "int8", title="Another first class", title_justify="left")
    for each in report.disagreements[:_SHOWN]:
        others.add_row(
            each.photo,
            f"{each.float32_label} {each.float32_probability:.3f}",
            f"{each.int8_label} {each.int8_probability:.3f}",
        )
    stdout.print(others)
    stdout.print(f"{report.near_ties} of these {len(report.disagreements)} are near-ties of float32's own.")
