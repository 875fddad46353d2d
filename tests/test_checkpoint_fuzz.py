"""Damaged and hostile checkpoints are read or refused in one line, within time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoint_bombs import BOMBS
from tests.checkpoint_fuzz import SEEDS, Reader, damaged_checkpoints, size_of

EACH = 3


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_claims_more_than_it_holds_is_refused(name: str, reader: Reader, tmp_path: Path) -> None:
    """A hostile file is dealt with in one printable line, 30 seconds and twice its size and 200 MB."""
    path = BOMBS[name](tmp_path)
    measured = reader.measure(path)
    assert not measured.faults(size_of(path))
    assert measured.outcome == "refused"


def test_damage_is_refused_or_harmless(reader: Reader, tmp_path: Path) -> None:
    """Files of every kind with bytes changed, cut, repeated or taken out are read or refused, within the bounds."""
    seen = set()
    for name, path in damaged_checkpoints(tmp_path, EACH, seed=1):
        seen.add(name)
        assert not reader.measure(path).faults(size_of(path)), name
    assert seen == set(SEEDS)
