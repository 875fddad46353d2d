"""A folder of photos → input pixels, split into calibration and held-out photos."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import QuantizationError, ServiceError
from ..images import DecodeLimits, decode, photo_files
from ..types import Pixels, Preprocessing

MIN_PHOTOS = 16
"""Half of them are held out. Of eight photos one is 12.5%; figures of fewer would be too coarse."""
FEW_PHOTOS = 64
_SEED = 0


@dataclass(frozen=True, slots=True)
class Photos:
    """The photos read from a folder."""

    pixels: Pixels
    """(N, H, W, 3) uint8."""
    names: tuple[str, ...]
    """Each photo's path below the folder."""
    skipped: tuple[tuple[str, str], ...]
    """Photos that could not be read or were duplicates, with the reason."""
    other_files: int
    """Files that are not photos."""

    def __len__(self) -> int:
        return len(self.names)


def read_photos(
    folder: Path,
    preprocessing: Preprocessing,
    limits: DecodeLimits,
    *,
    most: int,
    threads: int,
    progress: Callable[[int, int], None],
) -> Photos:
    """Decode up to `most` photos below `folder`; if it has more, a random choice that is always the same.

    Hidden files and folders are skipped. Raises `QuantizationError` if fewer than `MIN_PHOTOS` can be read.
    """
    if not folder.is_dir():
        raise QuantizationError(f"{folder} is no folder. Name the folder with the photos to calibrate with.")
    found, other_files = photo_files(folder)
    order = np.random.default_rng(_SEED).permutation(len(found))
    pixels: list[Pixels] = []
    names: list[str] = []
    skipped: list[tuple[str, str]] = []
    seen: dict[bytes, str] = {}
    wanted = min(most, len(found))

    def read(path: Path) -> tuple[Path, bytes, Pixels | str]:
        try:
            data = path.read_bytes()
            return path, hashlib.sha256(data).digest(), decode(data, preprocessing, limits)
        except ServiceError as error:
            return path, b"", error.detail
        except OSError as error:
            return path, b"", f"It cannot be read: {error.strerror}."

    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(found), 4 * threads):
            if len(names) >= most:
                break
            for path, digest, outcome in pool.map(read, [found[at] for at in order[first : first + 4 * threads]]):
                # A name can have bytes that are not UTF-8, which cannot be printed or written as JSON.
                name = str(path.relative_to(folder)).encode("utf-8", "replace").decode()
                if isinstance(outcome, str):
                    skipped.append((name, outcome))
                elif digest in seen:
                    # The same photo on both sides would falsify the report.
                    skipped.append((name, f"It is the same file as {seen[digest]}."))
                elif len(names) < most:
                    seen[digest] = name
                    names.append(name)
                    pixels.append(outcome)
                    progress(min(len(names), wanted), wanted)
    if len(names) < MIN_PHOTOS:
        raise QuantizationError(_too_few(folder, len(names), skipped))
    return Photos(np.stack(pixels), tuple(names), tuple(skipped), other_files)


def split(count: int, most_calibrating: int) -> tuple[slice, slice]:
    """The photos that calibrate, and those held out for the report. Their order is random, so any cut will do.

    Half of them calibrate, up to `most_calibrating`.
    """
    calibrating = min(count // 2, most_calibrating)
    return slice(0, calibrating), slice(calibrating, count)


def _too_few(folder: Path, count: int, skipped: list[tuple[str, str]]) -> str:
    text = (
        f"{folder} has {count or 'no'} photos that can be read, and calibration needs {MIN_PHOTOS} at the least; "
        f"a hundred or more, like those that will be served, are better."
    )
    if skipped:
        name, reason = skipped[0]
        text += f" {len(skipped)} were skipped, {name} first: {reason}"
    return text
