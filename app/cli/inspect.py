"""resnet-serve inspect and convert"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import printable
from ..logs import set_up_logging
from ..settings import SWITCHES, Settings
from .console import stderr, stdout

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint, Contents


_LAYERS = ("altered", "head")


def inspect(
    settings: Settings,
    checkpoint: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint: a file or a folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a checkpoint is and how it would be served: each decision, and where it comes from."""
    document = _describe(*_open(settings, checkpoint))
    if as_json:
        stdout.print(json.dumps(document, ensure_ascii=False), markup=False)
        return
    facts = Table(title=escape(printable(document["path"])), title_justify="left", show_header=False)
    for name in ("container", "family", "classes", "parameters", "sha256"):
        value = document[name]
        facts.add_row(name, f"{value:,}" if name == "parameters" else escape(str(value)))
    quantized = document.get("quantized")
    if quantized is not None:
        facts.add_row("quantized", quantized["shown"])
    stdout.print(facts)
    table = Table("decision", "value", "because of")
    for name, decision in document["decisions"].items():
        mark = "[yellow]" if decision["assumed"] else ""
        shown, source = (escape(printable(str(decision[key]))) for key in ("shown", "source"))
        table.add_row(name, f"{mark}{shown}", f"{mark}{source}")
    stdout.print(table)
    for note in document["notes"]:
        stderr.print(f"[bold]Note:[/] {escape(note)}", highlight=False)
    for warning in document["warnings"]:
        stderr.print(f"[bold yellow]Warning:[/] {escape(warning)}")


def convert(
    settings: Settings,
    checkpoint: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint: a file or a folder.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
) -> None:
    """Write a checkpoint's weights with every decision in the file, which then needs no guess."""
    from ..checkpoints import write_converted

    _, decided = _open(settings, checkpoint)
    write_converted(decided, target)
    for warning in decided.warnings:
        stderr.print(f"[bold yellow]Warning:[/] written as settled: {escape(warning)}")
    stdout.print(str(target), markup=False)


def _open(settings: Settings, checkpoint: str) -> tuple[Contents, Checkpoint]:
    """Read the checkpoint at a path and decide how it would be served."""
    from ..checkpoints import CheckpointFile, Found, decide, locate, read
    from ..errors import CheckpointError

    set_up_logging("warning" if settings.log_level == "info" else settings.log_level)
    source = locate(checkpoint)
    if not isinstance(source, CheckpointFile):
        raise CheckpointError(f"{checkpoint} is no file or folder here.")
    with stderr.status(f"Reading {escape(printable(str(source.path)))} …"):
        contents = read(Found(source), settings)
        return contents, decide(contents, settings)


def _describe(contents: Contents, checkpoint: Checkpoint) -> dict[str, Any]:
    """The output of `inspect`, as JSON."""
    from ..preprocessing import document_of
    from ..types import Preprocessing

    decided = checkpoint.decisions
    assert decided is not None
    decisions: dict[str, dict[str, Any]] = {}
    named = {each.name: getattr(decided, each.name) for each in fields(decided)}
    if checkpoint.switches is None:
        # These describe a ResNet-50, and would be wrong for another network.
        named = {name: decision for name, decision in named.items() if name not in SWITCHES}
    # If the pool is a different layer, its padding does not apply.
    if any(layer.name == "maxpool" for layer in decided.altered.value):
        named.pop("pool", None)
    # Most checkpoints have no value for these.
    named = {name: decision for name, decision in named.items() if name not in _LAYERS or decision.value}
    for name, decision in named.items():
        value: Any = decision.value
        shown: Any = value
        if isinstance(value, Preprocessing):
            shown = value.describe()
            value = document_of(value)
        elif name in _LAYERS:
            shown = "; ".join(f"{layer.name}: {layer.describe()}" for layer in value)
            value = [{key: fact for key, fact in asdict(layer).items() if fact not in (None, False)} for layer in value]
        elif isinstance(value, tuple):
            shown = f"{value[0]}, … {value[-1]}" if len(value) > 2 else ", ".join(value)
        decisions[name] = {"value": value, "shown": shown, "source": decision.source, "assumed": decision.is_assumed}
    graph = contents.graph
    record = graph.quantized if graph is not None else None
    document = {
        "path": str(contents.path),
        "container": contents.container,
        "family": contents.family,
        "classes": checkpoint.class_count,
        "parameters": sum(values.size for name, values in contents.weights.items() if "running_" not in name),
        "sha256": contents.sha256,
        "decisions": decisions,
        "notes": list(checkpoint.notes),
        "warnings": list(checkpoint.warnings),
    }
    if record is not None:
        about = record.model_dump(mode="json", exclude={"check", "labels", "preprocessing"})
        document["quantized"] = about | {"shown": record.describe()}
    return document
