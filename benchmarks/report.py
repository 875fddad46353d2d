"""Reports of the experiments: their options, the machine's line, and Markdown tables."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from app.bench.machine import this_machine, versions
from app.bench.photos import Photos, find_photos
from app.checkpoints import published_resnet50_preprocessing
from app.decoding import decode_as_served
from app.settings import Settings


def options_of(doc: str | None, *, photos: bool = False, **defaults: float) -> argparse.ArgumentParser:
    """A parser with `--photos` and a number option for each of `defaults`, such as rounds or seconds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if photos:
        parser.add_argument("--photos", type=Path, help="a folder of photos; without it, those that are at hand")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default {value:g}")
    return parser


def photos_of(folder: Path | None) -> Photos:
    """The photos of `folder`, or those that are at hand; only those that the service decodes."""
    decode = decode_as_served(Settings(backend="null"))
    return find_photos(folder, lambda data: decode(data, published_resnet50_preprocessing()))


def heading(*facts: str) -> str:
    """The machine, the versions, and further facts about the measurement, a line each."""
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n".join([f"{this_machine()}; {named}", *facts, ""])


def median(values: Sequence[float], digits: str = ".2f", unit: str = "") -> str:
    """A dash where there are no values."""
    return f"{statistics.median(values):{digits}}{unit}" if values else "–"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def say(text: str) -> None:
    """Progress, apart from the report on stdout."""
    print(text, file=sys.stderr, flush=True)
