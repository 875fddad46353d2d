"""The command `resnet-serve`. Each subcommand is in its own module and imports what it needs when it runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import StartError
from ..interpreter import end_at_stop_signals, open_standard_streams
from ..settings import (
    BatchingSettings,
    CheckpointSettings,
    DecodingSettings,
    LimitSettings,
    LogSettings,
    ModelSettings,
)
from .bench import bench
from .classify import classify
from .console import say_error
from .doctor import doctor
from .download import download
from .evaluate import evaluate
from .inspect import convert, inspect
from .options import with_settings
from .probe import probe
from .quantize import quantize
from .serve import serve

app = typer.Typer(
    name="resnet-serve",
    help="Serve a ResNet-50 image classifier over HTTP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"resnet-serve {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand != "serve":
        end_at_stop_signals()


app.command()(with_settings(serve))
app.command()(with_settings(classify, ModelSettings, DecodingSettings, BatchingSettings, LimitSettings, LogSettings))
app.command()(with_settings(download, CheckpointSettings, LogSettings))
app.command()(with_settings(inspect, CheckpointSettings, LimitSettings, LogSettings))
app.command()(with_settings(convert, CheckpointSettings, LogSettings))
app.command()(with_settings(evaluate, ModelSettings, DecodingSettings, LimitSettings, LogSettings))
app.command()(with_settings(quantize, ModelSettings, DecodingSettings, LimitSettings, LogSettings))
app.command()(with_settings(doctor, takes_wrong=True))
app.command()(probe)
app.command()(bench)


def main() -> None:
    """Run a command; a `StartError` is one clear message and exit status 1."""
    open_standard_streams()
    try:
        app()
    except StartError as error:
        say_error(error)
        sys.exit(1)
