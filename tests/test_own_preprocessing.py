"""Preprocessing of one's own: each setting and each member of a preprocessing.json changes its fact and no other."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as transforms
import torchvision.transforms.v2 as on_tensors
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.backends import BackendOptions, create_backend
from app.checkpoints import CheckpointFile, Contents, Decision, Told, decide_all, depends_on, locate, warnings_of
from app.checkpoints.own_preprocessing import read_own_preprocessing
from app.checkpoints.presets import PRESETS
from app.errors import CheckpointError, SettingError
from app.images.geometry import cropped_pixels
from app.preprocessing import PreprocessingFacts, document_of
from app.settings import EXPORT_SETTINGS, PREPROCESSING_FACTS, Settings, load_settings
from app.types import Interpolation, Preprocessing, Resizer, Want
from tests.examined import Examined, examine
from tests.images_made import photo
from tests.onnx_graphs import Maker
from tests.quantized_made import colours, made, write_network
from tests.test_command_line import run

TOLD = Decision(PRESETS["timm"], "config.json")
V1 = PRESETS["torchvision-v1"]
HALF, ZERO, ONE = (0.5,) * 3, (0.0,) * 3, (1.0,) * 3
CAFFE = (103.939, 116.779, 123.68)


def contents(told: Decision[Preprocessing] | None = None, facts: dict[str, Any] | None = None) -> Contents:
    own = PreprocessingFacts.model_validate(facts) if facts is not None else None
    told_of = Told(preprocessing=told)
    return Contents(Path("made"), {}, "0" * 64, "torch zip", "torchvision", told_of, preprocessing_beside=own)


def decided(
    told: Decision[Preprocessing] | None = None, facts: dict[str, Any] | None = None, **settings: str
) -> Decision[Preprocessing]:
    return decide_all(load_settings(**settings), contents(told, facts)).preprocessing


def numbers(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """What the network is given: (3, height, width)."""
    pixels = cropped_pixels(image, preprocessing)
    scale, shift = preprocessing.scale_and_shift()
    ordered = pixels[..., ::-1] if preprocessing.is_bgr else pixels
    return np.asarray((ordered * scale + shift).transpose(2, 0, 1))


# --- the settings


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"resize": "288"}, {"resize_short_side": 288}),
        ({"resize": "256x320"}, {"resize_short_side": None, "squash": (256, 320)}),
        ({"resize": "squash"}, {"resize_short_side": None}),
        ({"resize": "none"}, {"resize_short_side": None, "is_resized": False}),
        ({"crop": "192"}, {"crop": (192, 192)}),
        ({"crop": "224x200"}, {"crop": (224, 200)}),
        ({"resize": "300x280", "crop": "none"}, {"resize_short_side": None, "crop": (300, 280)}),
        ({"interpolation": "lanczos"}, {"interpolation": Interpolation.LANCZOS}),
        ({"resizer": "torchvision"}, {"resizer": "torchvision"}),
        ({"mean": "0.5"}, {"mean": HALF}),
        ({"mean": "0.1, 0.2,0.3"}, {"mean": (0.1, 0.2, 0.3)}),
        ({"std": "0.25"}, {"std": (0.25,) * 3}),
        ({"channels": "bgr"}, {"is_bgr": True}),
        ({"scale": "unit"}, {"mean": ZERO, "std": ONE}),
        ({"scale": "signed"}, {"mean": HALF, "std": HALF}),
        ({"scale": "levels"}, {"mean": ZERO, "std": (1 / 255,) * 3}),
    ],
)
def test_a_setting_changes_its_own_fact(settings: dict[str, str], change: dict[str, Any]) -> None:
    """Over what the checkpoint tells and over a preset; the source names both."""
    found = decided(TOLD, **settings)
    names = ", ".join(f"RESNET_{name.upper()}" for name in settings)
    assert found == Decision(replace(TOLD.value, **change), f"config.json, {names}")
    found = decided(TOLD, preprocessing="torchvision-v1", **settings)
    assert found == Decision(replace(V1, **change), f"RESNET_PREPROCESSING, {names}")


def test_a_crop_follows_where_nothing_is_cut_off() -> None:
    """Of a preprocessing that squashes to the network's size, a new size is that of both."""
    for settings in ({"resize": "299x299"}, {"crop": "299"}):
        assert decided(preprocessing="keras", **settings).value == replace(PRESETS["keras"], crop=(299, 299))


TRANSFORMS: dict[str, tuple[dict[str, str], Any]] = {
    "squashed": (
        {"resize": "256x256", "crop": "none", "mean": "0.5", "std": "0.5"},
        [transforms.Resize((256, 256)), transforms.ToTensor(), transforms.Normalize(HALF, HALF)],
    ),
    "squashed, then cropped": (
        {"resize": "256x256", "crop": "224", "scale": "unit"},
        [transforms.Resize((256, 256)), transforms.CenterCrop(224), transforms.ToTensor()],
    ),
    "a short side, bicubic": (
        {"resize": "146", "crop": "128", "interpolation": "bicubic"},
        [
            transforms.Resize(146, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(128),
            transforms.ToTensor(),
            transforms.Normalize(V1.mean, V1.std),
        ],
    ),
    "a tensor": (
        {"resizer": "torchvision", "scale": "signed"},
        [
            on_tensors.PILToTensor(),
            on_tensors.Resize(256),
            on_tensors.CenterCrop(224),
            on_tensors.ToDtype(torch.float32, scale=True),
            on_tensors.Normalize(HALF, HALF),
        ],
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_numbers_are_those_of_the_transform(name: str) -> None:
    """A photo becomes what torchvision's own transforms make of it, for pipelines that no preset has."""
    settings, steps = TRANSFORMS[name]
    found = numbers(photo("coffee"), decided(preprocessing="torchvision-v1", **settings).value)
    expected = transforms.Compose(steps)(photo("coffee")).numpy()
    # Where torchvision itself resizes in floating point, a level; else rounding alone.
    exact = torch.backends.cpu.get_cpu_capability() != "DEFAULT" or name != "a tensor"
    assert np.abs(found - expected).max() < (1e-5 if exact else 0.02)


@pytest.mark.parametrize(
    ("preset", "resampling"),
    [("keras-nearest", Image.Resampling.NEAREST), ("keras", Image.Resampling.BILINEAR)],
)
def test_keras_presets_are_load_img_and_preprocess_input(preset: str, resampling: Image.Resampling) -> None:
    """keras.utils.load_img(target_size=(224, 224)), nearest by default, then preprocess_input of mode caffe."""
    levels = np.asarray(photo("coffee").resize((224, 224), resampling), np.float32)
    expected = (levels[..., ::-1] - np.array(CAFFE)).transpose(2, 0, 1)
    assert np.abs(numbers(photo("coffee"), PRESETS[preset]) - expected).max() < 1e-4


def test_keras_v2_nearest_is_load_img_and_mode_tf() -> None:
    """The same with x / 127.5 - 1."""
    levels = np.asarray(photo("coffee").resize((224, 224), Image.Resampling.NEAREST), np.float32)
    expected = (levels / 127.5 - 1).transpose(2, 0, 1)
    assert np.abs(numbers(photo("coffee"), PRESETS["keras-v2-nearest"]) - expected).max() < 1e-5


def test_levels_are_levels() -> None:
    """A mean and a deviation of grey levels, in the network's order of channels."""
    settings = {"scale": "levels", "mean": "103.939,116.779,123.68", "std": "58", "channels": "bgr"}
    found = decided(preprocessing="torchvision-v1", **settings).value
    pixels = cropped_pixels(photo(), V1).astype(np.float64)
    expected = ((pixels[..., ::-1] - np.array(CAFFE)) / 58).transpose(2, 0, 1)
    assert np.abs(numbers(photo(), found) - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"resize": "0"}, ["RESNET_RESIZE (--resize) cannot be '0'", "1 to 4096"]),
        ({"resize": "4097"}, ["1 to 4096"]),
        ({"resize": "224x224x3"}, ["a short side such as 256"]),
        ({"resize": "[224]"}, ["a short side such as 256"]),
        ({"crop": "squash"}, ["RESNET_CROP (--crop) cannot be 'squash'", "a side such as 224"]),
        ({"mean": "0.4,0.5"}, ["RESNET_MEAN (--mean)", "one number, or three separated by commas"]),
        ({"mean": "nan"}, ["finite"]),
        ({"mean": "red"}, ["one number, or three"]),
        ({"std": "0"}, ["RESNET_STD (--std) cannot be '0'", "above 0"]),
        ({"std": "0.2,0,0.2"}, ["above 0"]),
        ({"mean": "123.68,116.78,103.94"}, ["123.68 is of grey levels", "set RESNET_SCALE to levels"]),
        ({"std": "58", "scale": "signed"}, ["58 is of grey levels"]),
        ({"mean": "0.485,0.456,0.406", "scale": "levels"}, ["is of fractions", "set RESNET_SCALE to unit"]),
        ({"interpolation": "area"}, ["RESNET_INTERPOLATION (--interpolation) cannot be 'area'", "'lanczos'"]),
        ({"scale": "255"}, ["RESNET_SCALE"]),
        ({"channels": "gbr"}, ["RESNET_CHANNELS"]),
    ],
)
def test_wrong_settings_are_refused_at_the_start(settings: dict[str, str], parts: list[str]) -> None:
    """In one line that names the setting and says what it may be."""
    with pytest.raises(SettingError) as caught:
        load_settings(**settings)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)
    assert "`" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"crop": "299"}, ["RESNET_CROP, with config.json", "crop of 299×299", "short side of 235"]),
        ({"resize": "200"}, ["crop of 224×224", "short side of 200", "set RESNET_RESIZE and RESNET_CROP"]),
        ({"resize": "300x200"}, ["to, 300×200"]),
        ({"crop": "none"}, ["RESNET_CROP can be none where RESNET_RESIZE"]),
        ({"resizer": "torchvision", "interpolation": "box"}, ["no interpolation box", "RESNET_RESIZER to pillow"]),
        ({"resizer": "torchvision-no-antialias", "interpolation": "lanczos"}, ["nearest, bilinear, bicubic"]),
        ({"preprocessing": "caffe"}, ["RESNET_PREPROCESSING cannot be 'caffe'", *PRESETS]),
    ],
)
def test_facts_that_do_not_go_together_are_refused(settings: dict[str, str], parts: list[str]) -> None:
    """In one line that says what each is and which setting to change."""
    with pytest.raises(SettingError) as caught:
        decided(TOLD, **settings)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)


def test_every_preset_is_in_the_settings_description() -> None:
    """The list that help and README show is that of the presets."""
    description = Settings.model_fields["preprocessing"].description
    assert description is not None
    assert f"({', '.join(PRESETS)})" in description


def test_an_export_depends_on_every_fact() -> None:
    """Two starts that prepare images otherwise share no export."""
    assert set(PREPROCESSING_FACTS) < set(EXPORT_SETTINGS)


# --- assumptions


def test_what_stays_assumed_is_warned_of() -> None:
    """One fact does not make an assumption sure; all of them do."""
    some = decided(resize="256")
    assert some.is_assumed
    assert some.source == "IMAGENET1K_V1's way, RESNET_RESIZE"
    (warning,) = [
        line
        for line in warnings_of(contents(), decide_all(Settings(resize="256"), contents()), "pets.pth")
        if "how its images were prepared" in line
    ]
    assert "assuming IMAGENET1K_V1's way, RESNET_RESIZE" in warning
    every = decided(resize="256", crop="224", interpolation="bilinear", mean="0.5", std="0.5")
    assert not every.is_assumed
    assert every.source == "RESNET_RESIZE, RESNET_CROP, RESNET_INTERPOLATION, RESNET_MEAN, RESNET_STD"


# --- the file beside

WHOLE = {
    "resize": 256,
    "crop": 224,
    "interpolation": "bicubic",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "channels": "bgr",
    "scale": "unit",
}


def test_the_file_goes_between_settings_and_the_checkpoint() -> None:
    """It changes what the checkpoint tells, and settings change it; a note says what it overrode."""
    found = decided(TOLD, WHOLE)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    expected = Preprocessing(256, (224, 224), Interpolation.BICUBIC, mean, std, is_bgr=True)
    assert found == Decision(expected, "preprocessing.json")
    found = decided(TOLD, WHOLE, mean="0.5", channels="rgb")
    assert found.value == replace(expected, mean=HALF, is_bgr=False)
    assert found.source == "preprocessing.json, RESNET_MEAN, RESNET_CHANNELS"
    assert decided(TOLD, {"crop": 200}).source == "config.json, preprocessing.json"
    assert decided(TOLD, {"preset": "keras", "crop": 299}) == Decision(
        replace(PRESETS["keras"], crop=(299, 299)), "preprocessing.json"
    )
    assert decided(TOLD, {"preset": "IMAGENET1K_V2"}).value == PRESETS["torchvision-v2"]


def write(folder: Path, facts: Any, maker: Maker | None = None) -> Path:
    path = folder / "model.onnx"
    path.write_bytes((maker or Maker(side="side")).build())
    (folder / "preprocessing.json").write_text(json.dumps(facts), encoding="utf-8")
    return path


def notes_of(examined: Examined) -> list[str]:
    return [note for note in examined.notes if "preprocessing.json" in note]


def test_a_file_beside_a_checkpoint_is_found_and_told(tmp_path: Path) -> None:
    """Beside a file and in its folder, it is no checkpoint of its own, and what it overrode is a note."""
    path = write(tmp_path, {"crop": 192, "scale": "signed"})
    assert locate(None, tmp_path) == CheckpointFile(path)
    examined = examine(Settings(), path)
    assert examined.decisions.preprocessing.value == replace(V1, crop=(192, 192), mean=HALF, std=HALF)
    assert examined.decisions.preprocessing.source == "torchvision's usual way, preprocessing.json"
    assert notes_of(examined) == []
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}', encoding="utf-8")
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224, "resample": 2}', encoding="utf-8")
    examined = examine(Settings(), path)
    assert examined.decisions.preprocessing.source == "preprocessor_config.json, preprocessing.json"
    (note,) = notes_of(examined)
    assert note.startswith("preprocessing.json goes before preprocessor_config.json, which says: short side 256")
    (note,) = notes_of(examine(Settings(preprocessing="timm"), path))
    assert note == "preprocessing.json is not used: RESNET_PREPROCESSING goes before it."


def test_a_served_answer_is_that_of_the_file(tmp_path: Path) -> None:
    """The scores of a photo are the network's for the images that the file describes."""
    maker = Maker(side="side")
    path = write(tmp_path, {"resize": [70, 60], "crop": "none", "scale": "signed", "channels": "bgr"}, maker)
    checkpoint = examine(Settings(), path).checkpoint
    backend = create_backend("auto", checkpoint, BackendOptions(threads=1))
    pixels = cropped_pixels(photo(), checkpoint.preprocessing)[None]
    expected = np.asarray(photo().resize((60, 70), Image.Resampling.BILINEAR), np.float32)[..., ::-1] / 127.5 - 1
    scores = backend.infer(pixels, Want.SCORES).scores
    assert np.abs(scores - maker.logits(expected.transpose(2, 0, 1)[None])).max() < 1e-4


def test_an_export_depends_on_the_file(tmp_path: Path) -> None:
    """By its content, and by its not being there."""
    path = write(tmp_path, {"crop": 192})
    seen = [depends_on(path)]
    (tmp_path / "preprocessing.json").write_text('{"crop": 193}', encoding="utf-8")
    seen.append(depends_on(path))
    (tmp_path / "preprocessing.json").unlink()
    seen.append(depends_on(path))
    assert all(one != other for i, one in enumerate(seen) for other in seen[i + 1 :])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "it is not JSON"),
        ("[256]", "it is no JSON object"),
        ('{"size": 224}', "'size' is no member of it, which are preset, resize, crop"),
        ('{"crop": true}', "'crop' cannot be 'True': it is a side such as 224"),
        ('{"crop": [224, 224, 3]}', "it is a side such as 224"),
        ('{"crop": 224.5}', "it is a side such as 224"),
        ('{"resize": 100000}', "1 to 4096"),
        ('{"interpolation": "area"}', "'interpolation' cannot be 'area'"),
        ('{"mean": [NaN, 0, 0]}', "finite"),
        ('{"mean": ["a", 0, 0]}', "one number, or three"),
        ('{"mean": [1e400, 0, 0]}', "finite"),
        ('{"std": [0.2, 0.2, 0]}', "above 0"),
        ('{"mean": 127.5}', 'set "scale" to levels'),
        ('{"channels": "gray"}', "'channels' cannot be 'gray'"),
        ('{"crop": 224' + " " * 70_000 + "}", "over 65,536 bytes"),
        ("[" * 60_000, "it is not JSON"),
        ('{"mean": [1, ' + "9" * 400 + ", 2]}", "finite"),
        ('{"mean": ' + "9" * 5000 + "}", "preprocessing.json"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, part: str) -> None:
    """In one line with the file's path, the member and what it may be."""
    (tmp_path / "preprocessing.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        read_own_preprocessing(tmp_path)
    assert part in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A FIFO, a device and a folder are not waited for or read."""
    path = tmp_path / "preprocessing.json"
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="no regular file"):
        read_own_preprocessing(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_own_preprocessing(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"no regular file|Cannot read"):
        read_own_preprocessing(tmp_path)
    assert read_own_preprocessing(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("facts", "part"),
    [({"preset": "caffe"}, "\"preset\" cannot be 'caffe'"), ({"crop": 300}, 'set "resize" and "crop"')],
)
def test_a_file_that_does_not_fit_is_refused(facts: dict[str, Any], part: str) -> None:
    """In one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        decided(TOLD, facts)
    assert str(caught.value).startswith("preprocessing.json")
    assert part in str(caught.value)


# --- graphs


def test_a_graph_that_normalises_keeps_doing_so(tmp_path: Path) -> None:
    """A preset brings size and filter to such a graph; a mean of one's own is warned of."""
    path = tmp_path / "model.onnx"
    path.write_bytes(Maker(scale=255.0, side="side").build())
    found = examine(Settings(preprocessing="timm"), path)
    value = replace(PRESETS["timm"], mean=ZERO, std=(1 / 255,) * 3)
    assert found.decisions.preprocessing == Decision(value, "RESNET_PREPROCESSING, normalised by the graph")
    assert not [line for line in found.warnings if "normalises its input itself" in line]
    found = examine(Settings(mean="0.5"), path)
    assert found.decisions.preprocessing.value.mean == HALF
    (warning,) = [line for line in found.warnings if "normalises its input itself" in line]
    assert "takes pixels of 0 to 255" in warning


def test_a_size_that_a_graph_does_not_take_is_refused(tmp_path: Path) -> None:
    """By a setting of one's own as by a preset."""
    path = tmp_path / "model.onnx"
    path.write_bytes(Maker().build())
    checkpoint = examine(Settings(crop="30"), path).checkpoint
    with pytest.raises(SettingError, match=r"gives images of 30×30, but .* takes 32×32"):
        create_backend("onnx", checkpoint, BackendOptions())


def test_a_quantized_model_keeps_its_own(tmp_path: Path) -> None:
    """No setting and no file changes what its weights were made for; a file that says the same is none."""
    model, _ = made(write_network(tmp_path), colours(24))
    path = tmp_path / "model.int8.onnx"
    path.write_bytes(model)
    examined = examine(Settings(), path)
    own = examined.decisions.preprocessing.value
    with pytest.raises(SettingError, match=r"RESNET_MEAN is 0\.5, but this model was quantized"):
        examine(Settings(mean="0.5"), path)
    (tmp_path / "preprocessing.json").write_text(json.dumps(document_of(own)), encoding="utf-8")
    assert examine(Settings(), path).decisions.preprocessing == examined.decisions.preprocessing
    (tmp_path / "preprocessing.json").write_text('{"mean": 0.5}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="but this model was quantized for"):
        examine(Settings(), path)


# --- inspect


def test_what_inspect_prints_is_such_a_file(tmp_path: Path) -> None:
    """The value of `inspect --json`, written beside the weights, is the same preprocessing."""
    path = tmp_path / "model.onnx"
    path.write_bytes(Maker(side="side").build())
    flags = ("--resize", "250x240", "--crop", "none", "--interpolation", "hamming", "--scale", "levels", "--mean=-3")
    done = run("inspect", "model.onnx", "--json", *flags, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    decision = json.loads(done.stdout)["decisions"]["preprocessing"]
    assert decision["shown"].startswith("squashed hamming, centre crop 250×240, mean -0.01176")
    settings = {"resize": "250x240", "crop": "none", "interpolation": "hamming", "scale": "levels", "mean": "-3"}
    by_settings = examine(load_settings(**settings), path).decisions.preprocessing
    (tmp_path / "preprocessing.json").write_text(json.dumps(decision["value"]), encoding="utf-8")
    by_file = examine(Settings(), path).decisions.preprocessing
    assert by_file == Decision(by_settings.value, "preprocessing.json")


sides = st.integers(1, 4096)
fractions = st.floats(0, 2, allow_subnormal=False)
resizers: list[Resizer] = ["pillow", "torchvision"]


@given(
    st.sampled_from(["short", "squash", "whole", "none"]),
    st.tuples(sides, sides),
    st.tuples(fractions, fractions, fractions),
    st.sampled_from([Interpolation.NEAREST, Interpolation.BICUBIC]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(resizers),
)
def test_every_preprocessing_can_be_written(
    how: str,
    crop: tuple[int, int],
    mean: tuple[float, float, float],
    interpolation: Interpolation,
    is_bgr: bool,
    floor_crop: bool,
    resizer: Resizer,
) -> None:
    """As a file and read again, over any other, it is what it was."""
    larger = min(max(crop) + 1, 4096)
    value = Preprocessing(
        larger if how == "short" else None,
        crop,
        interpolation,
        mean,
        (0.25, 0.5, 1.0),
        is_bgr=is_bgr,
        floor_crop=floor_crop,
        squash=(larger, larger) if how == "squash" and crop != (larger, larger) else None,
        is_resized=how != "none",
        resizer=resizer,
    )
    facts = PreprocessingFacts.model_validate_json(json.dumps(document_of(value)))
    for base in (PRESETS["keras"], PRESETS["huggingface-torchvision"]):
        assert facts.applied_to(base) == value


def test_describe_says_every_fact() -> None:
    """Two preprocessings that differ in one fact are described otherwise."""
    changes: list[dict[str, Any]] = [
        {},
        {"resize_short_side": 257},
        {"resize_short_side": None},
        {"resize_short_side": None, "squash": (256, 260)},
        {"resize_short_side": None, "is_resized": False},
        {"crop": (224, 223)},
        {"interpolation": Interpolation.BOX},
        {"mean": HALF},
        {"std": HALF},
        {"is_bgr": True},
        {"floor_crop": True},
        {"resizer": "torchvision"},
        {"resizer": "torchvision-no-antialias"},
    ]
    assert len({replace(V1, **change).describe() for change in changes}) == len(changes)
