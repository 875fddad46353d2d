"""Settings: flags before the environment, one error for each wrong one, groups, and tables that hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import SettingError
from app.settings import (
    ENV_PREFIX,
    EXPORT_SETTINGS,
    GROUPS,
    ModelSettings,
    Settings,
    load_settings,
    unknown_variables,
)
from app.settings.tables import HEAD, row
from tests.running import clean_environment


def test_flags_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag wins over its variable, a variable over the default, and an empty variable is unset."""
    monkeypatch.setenv("RESNET_PORT", "8100")
    monkeypatch.setenv("RESNET_HOST", "")
    monkeypatch.setenv("RESNET_MAX_BATCH_SIZE", "16")
    monkeypatch.setenv("RESNET_CORS_ORIGINS", "https://a.example, https://b.example")
    settings = load_settings(port="8200", host=None)
    assert settings.port == 8200
    assert settings.host == "127.0.0.1"
    assert settings.max_batch_size == 16
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert load_settings().port == 8100


def test_every_wrong_setting_is_named() -> None:
    """All that is wrong is told at once, a line each."""
    with pytest.raises(SettingError) as caught:
        load_settings(port="-1", max_images="none", device="gpu")
    lines = str(caught.value).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["RESNET_PORT", "RESNET_DEVICE", "RESNET_MAX_IMAGES"]


@pytest.mark.parametrize("given", ["inf", "1e400", "2.5"])
def test_settings_reach_other_processes(given: str) -> None:
    """As JSON and back settings are what they were, one without a bound too."""
    settings = load_settings(decode_timeout_seconds=given, max_jpeg_megapixel_scans=given, slo_p99_ms=given)
    again = Settings.model_validate_json(settings.model_dump_json())
    assert again == settings
    assert again.slo_p99_ms == float(given)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://a.example", "https://a.example"),
        ("HTTPS://A.example:443", "https://a.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("*", "*"),
        ("null", "null"),
    ],
)
def test_origins_are_as_browsers_send_them(given: str, kept: str) -> None:
    """Small letters, and no port that is the scheme's own."""
    assert load_settings(cors_origins=given).cors_origins == (kept,)


@pytest.mark.parametrize(
    "given",
    [
        *("https://a.example/", "https://a.example/app", "a.example", "localhost:3000", "https://", "//a.example"),
        *("https://*.example", "https://me@a.example", "https://a.example?x", "https://a.example:port", "https://a b"),
    ],
)
def test_an_origin_that_would_match_no_page_is_refused(given: str) -> None:
    """A path, a slash at the end or no scheme is told at the start, with what an origin is."""
    with pytest.raises(SettingError, match=r"RESNET_CORS_ORIGINS .*is no origin: an origin is a scheme"):
        load_settings(cors_origins=f"https://good.example,{given}")


def test_settings_do_not_change() -> None:
    """A setting cannot be assigned once the service has its settings."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("RESNET_WORKER_COUNT", False),
        ("RESNET_MAXQUEUE", True),
        ("RESNET_SERVICE_HOST", False),
    ],
)
def test_unknown_variables_are_told(monkeypatch: pytest.MonkeyPatch, name: str, hint: bool) -> None:
    """A variable that is no setting is reported, with the nearest setting if one is near."""
    monkeypatch.setenv(name, "1")
    (line,) = unknown_variables()
    assert line.startswith(f"{name} is not a setting")
    assert ("Did you mean" in line) is hint


def test_every_setting_is_of_one_group() -> None:
    """The flat class has the fields of all groups, in the groups' order; ModelSettings has some of them."""
    assert [name for group in GROUPS for name in group.model_fields] == list(Settings.model_fields)
    assert len({group.title for group in GROUPS}) == len(GROUPS)
    assert ModelSettings.model_fields.keys() < Settings.model_fields.keys()


def test_the_settings_of_the_model_are_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have the values that were set, know which those are, and reach another process as JSON without the rest."""
    monkeypatch.setenv("RESNET_EPSILON", "0.001")
    settings = load_settings(weights="mine.pth", mean="0.5", std="0.25", port="8100")
    model = settings.model_settings()
    assert type(model) is ModelSettings
    assert model.model_fields_set == {"weights", "mean", "std", "epsilon", "cache_dir"}
    assert all(getattr(model, name) == getattr(settings, name) for name in ModelSettings.model_fields)
    assert ModelSettings.model_validate_json(model.model_dump_json()) == model.model_settings() == model


def test_a_setting_of_the_model_is_in_the_key_of_exports_unless_it_is_excepted() -> None:
    """Exports that are kept stay valid: their keys have these settings, as this text."""
    settings = Settings(weights="mine.pth", epsilon=1e-3, device="cpu", model_name="mine")
    assert settings.export_settings() == settings.model_settings().export_settings()
    assert settings.export_settings() == {
        **{"weights": "mine.pth", "architecture": "auto", "preprocessing": "auto", "activation": "auto"},
        **{"stride_in": "auto", "stem": "auto", "pool": "auto", "epsilon": "0.001"},
        **{"resize": "None", "crop": "None", "interpolation": "auto", "resizer": "auto"},
        **{"mean": "None", "std": "None", "scale": "auto", "channels": "auto"},
        **{"labels": "None", "onnx_output": "None", "max_checkpoint_bytes": "1073741824"},
    }
    assert ModelSettings.model_fields.keys() - set(EXPORT_SETTINGS) == {
        *("weights_fallback", "cache_dir", "download_mirror", "model_name", "min_agreement"),
        *("backend", "device", "precision", "compute_threads"),
    }


def test_the_document_is_the_generated_one(repository: Path) -> None:
    """docs/configuration.md is what `python -m app.settings` prints: each setting, its default and its meaning."""
    run = subprocess.run(
        [sys.executable, "-m", "app.settings"],
        cwd=repository,
        env=clean_environment() | {"XDG_CACHE_HOME": "/elsewhere"},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    text = (repository / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert text == run.stdout, "Run: python -m app.settings > docs/configuration.md"
    assert re.findall(r"^\| `(RESNET_\w+)` \|", text, re.MULTILINE) == [
        f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields
    ]


def test_the_readme_has_some_of_the_settings(repository: Path) -> None:
    """README's table has lines of docs/configuration.md, in its order, and links to the rest."""
    text = (repository / "README.md").read_text(encoding="utf-8")
    _, _, table = text.partition("\n## Configuration\n")[2].partition("\n## ")[0].partition(HEAD)
    given = table.splitlines(keepends=True)
    assert 10 <= len(given) <= 15
    assert given == [line for name, field in Settings.model_fields.items() if (line := row(name, field)) in given]
    assert "](docs/configuration.md)" in text
