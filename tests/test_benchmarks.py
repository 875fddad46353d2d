"""The programs in `benchmarks/`: what they take, and what they say of a run that did not go well."""

from __future__ import annotations

import pytest

from benchmarks import compare


def test_compare_takes_peers_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    """`make compare` gives no argument and gets the usual peers; another name is refused, with those there are."""
    assert compare.parse([]).peers == ["plain-fastapi", "litserve", "mosec"]
    assert compare.parse(["bentoml", "--rounds", "1"]).peers == ["bentoml"]
    with pytest.raises(SystemExit):
        compare.parse(["mosec", "nginx"])
    assert "there is no peer nginx; choose from plain-fastapi" in capsys.readouterr().err
