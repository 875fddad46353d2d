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
"""Half of them are held out, and of eight one is 12.5%: less says nothing."""
FEW_PHOTOS = 64
_SEED = 0


@dataclass(frozen=True, slots=True)
class Photos:
    """What was read of a folder."""

    pixels: Pixels
    """(N, H, W, 3) uint8."""
    names: tuple[str, ...]
    """Of each, its path below the folder."""
    skipped: tuple[tuple[str, str], ...]
    """Photos that could not be read, or were there before, and why."""
    other_files: int
    """Files that are no photos."""

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
    """Decode up to `most` photos below `folder`, chosen by chance but always the same where it holds more.

    Hidden files and folders are passed over. Raises `QuantizationError` where fewer than `MIN_PHOTOS` can be read.
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
                # A name need not be UTF-8, and what is printed or written as JSON must be.
                name = str(path.relative_to(folder)).encode("utf-8", "replace").decode()
                if isinstance(outcome, str):
                    skipped.append((name, outcome))
                elif digest in seen:
                    # The same photo on both sides would be no proof.
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
    """Which photos calibrate, and which are held out for the report; they come in no order, so a cut is as good as any.

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
