"""Folders that are one checkpoint: Hugging Face's and timm's, with what the files beside the weights tell."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from app.checkpoints import CheckpointFile, Contents, decide_all, home_of, locate, read_checkpoint, warnings_of
from app.checkpoints.model_config import read_hugging_face, read_timm
from app.errors import CheckpointError, StartError
from app.labels import labels_beside
from app.settings import Settings
from app.types import Interpolation, Preprocessing

MEAN, STD, HALF = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.5, 0.5, 0.5)
RESNET = {"model_type": "resnet", "depths": [3, 4, 6, 3], "layer_type": "bottleneck"}
CONVNEXT = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 224},
    "crop_pct": 0.875,
    "resample": 3,
    "image_mean": MEAN,
    "image_std": STD,
}
PRETRAINED = {"input_size": [3, 224, 224], "crop_pct": 0.95, "interpolation": "bicubic", "mean": MEAN, "std": STD}
TIMM = {"architecture": "resnet50", "num_classes": 2, "pretrained_cfg": PRETRAINED}


def write(folder: Path, config: dict[str, Any], processor: dict[str, Any] | None = None, prefix: str = "") -> Path:
    """A folder with a configuration and the few tensors that say whose they are, for two classes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    names = ("conv1.weight", "fc.weight")
    if config.get("model_type") == "resnet":
        names = ("resnet.embedder.embedder.convolution.weight", "classifier.1.weight")
    shapes = ((64, 3, 7, 7), (2, 2048))
    save_file(
        {f"{prefix}{name}": np.ones(shape, np.float32) for name, shape in zip(names, shapes, strict=True)},
        folder / "model.safetensors",
    )
    return folder


def preprocessing_of(contents: Contents) -> Preprocessing:
    assert contents.told.preprocessing is not None
    return contents.told.preprocessing.value


def test_hugging_face_folder_tells_everything(tmp_path: Path) -> None:
    """config.json and preprocessor_config.json settle stride, labels and preprocessing, and nothing is warned of."""
    config = RESNET | {"downsample_in_bottleneck": True, "id2label": {"0": "cat", "1": "dog"}}
    folder = write(tmp_path / "pets", config, CONVNEXT)
    contents = read_checkpoint(folder)
    assert set(contents.weights) == {"conv1.weight", "fc.weight", "fc.bias"}
    assert contents.container == "Hugging Face folder (safetensors)"
    decisions = decide_all(Settings(), contents)
    assert (decisions.stride_in.value, decisions.stride_in.source) == ("1x1", "config.json")
    assert decisions.preprocessing.value == Preprocessing(
        256, (224, 224), Interpolation.BICUBIC, MEAN, STD, floor_crop=True
    )
    assert decisions.preprocessing.source == "preprocessor_config.json"
    assert contents.told.labels is not None
    assert contents.told.labels.value == ("cat", "dog")
    assert not [line for line in warnings_of(contents, decisions, "pets") if "assuming" in line]


def test_stride_is_v1_5_where_the_config_is_silent(tmp_path: Path) -> None:
    """Without downsample_in_bottleneck the stride is in the 3×3, and that is not an assumption."""
    contents = read_checkpoint(write(tmp_path, RESNET, CONVNEXT))
    assert decide_all(Settings(), contents).stride_in.value == "3x3"
    assert not decide_all(Settings(), contents).stride_in.is_assumed
    assert decide_all(Settings(stride_in="1x1"), contents).stride_in.value == "1x1"


def test_naming_the_file_inside_is_the_same(tmp_path: Path) -> None:
    """The weights file named by itself is read with the files beside it, and has the folder's version."""
    folder = write(tmp_path / "pets", RESNET | {"downsample_in_bottleneck": True}, CONVNEXT)
    whole, named = read_checkpoint(folder), read_checkpoint(folder / "model.safetensors")
    assert named.told == whole.told
    assert named.sha256 == whole.sha256


def test_pytorch_model_bin_is_read_where_there_is_no_safetensors(tmp_path: Path) -> None:
    """A folder's pytorch_model.bin is its weights, under model.safetensors where both lie there."""
    import torch

    folder = write(tmp_path, RESNET, CONVNEXT)
    torch.save({"classifier.1.weight": torch.zeros(2, 2048)}, folder / "pytorch_model.bin")
    assert read_checkpoint(folder).weights["fc.weight"].max() == 1
    (folder / "model.safetensors").unlink()
    assert "torch zip" in read_checkpoint(folder).container


def test_locate_takes_a_checkpoint_folder(tmp_path: Path) -> None:
    """A checkpoint's folder is found when named, alone in model_weights/, and as model_weights/ itself."""
    folder = write(tmp_path / "weights" / "pets", RESNET, CONVNEXT)
    assert locate(str(folder)) == CheckpointFile(folder)
    assert locate(None, tmp_path / "weights") == CheckpointFile(folder)
    assert locate(None, folder) == CheckpointFile(folder)
    (folder / "tf_model.h5").write_bytes(b"another copy")
    (folder / "optimizer.pt").write_bytes(b"of the training")
    assert locate(None, folder) == CheckpointFile(folder)
    (tmp_path / "weights" / "labels.txt").write_text("cat\ndog\n", encoding="utf-8")
    assert locate(None, tmp_path / "weights") == CheckpointFile(folder)


def test_two_checkpoints_are_named(tmp_path: Path) -> None:
    """A checkpoint's folder beside a file, or a strange file in it, is an error that names both."""
    folder = write(tmp_path / "weights" / "pets", RESNET, CONVNEXT)
    (tmp_path / "weights" / "other.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints: other\.pth, pets\."):
        locate(None, tmp_path / "weights")
    (folder / "other.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        locate(None, folder)


def test_plain_folder_with_one_checkpoint_still_works(tmp_path: Path) -> None:
    """A folder that is no checkpoint and holds one is that one."""
    (tmp_path / "resnet50.pth").write_bytes(b"PK")
    assert locate(str(tmp_path)) == CheckpointFile(tmp_path / "resnet50.pth")


def test_what_lies_beside_a_checkpoint_is_none(tmp_path: Path) -> None:
    """Tables, programs, pictures, licences and an ONNX file's own numbers are not taken for checkpoints."""
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08")
    for name in (
        "model.onnx.data",
        "train.py",
        "log.csv",
        "curve.png",
        "LICENSE",
        "args.yaml",
        "classes.txt",
        "a.sha256",
    ):
        (tmp_path / name).write_bytes(b"x")
    assert locate(None, tmp_path) == CheckpointFile(tmp_path / "model.onnx")


BESIDE = (
    *(
        "SHA256SUMS",
        "model.pth.sha512",
        "md5sums.txt",
        "CHECKSUMS",
        "model.pth.asc",
        "LICENSE.txt",
        "LICENCE",
        "COPYING",
    ),
    *(
        "NOTICE.md",
        "CITATION.cff",
        "args.yaml",
        "config.JSON",
        "README",
        "readme.MD",
        "AUTHORS",
        "VERSION",
        "nohup.out",
    ),
    *(".DS_Store", "._model.pth", ".gitattributes", ".model.pth.swp", "Thumbs.db", "ehthumbs.db", "desktop.ini"),
    *("Desktop.ini", "Icon\r", "model.pth~", "~$notes.docx", "model.pth.bak", "weights.pth.crdownload", "a.pth.aria2"),
    *("events.out.tfevents.1700000000.host.1.0", "results.csv", "curve.webp", "classes.names", "train.ipynb"),
    *("notes", "arguments.unknown", "empty"),
)


@pytest.mark.parametrize("weights", ["model.pth", "resnet50.safetensors", "model.onnx", "version.h5"])
def test_what_systems_and_tools_leave_is_passed_over(tmp_path: Path, weights: str) -> None:
    """Sums, licences, settings, system files and folders beside a checkpoint are not counted as checkpoints."""
    (tmp_path / weights).write_bytes(b"\x08\x08")
    for name in BESIDE:
        (tmp_path / name).write_bytes(b"" if name == "empty" else b"some text\n")
    for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "logs", "wandb", "photos"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.txt").write_text("text")
    assert locate(None, tmp_path) == CheckpointFile(tmp_path / weights)
    (tmp_path / weights).unlink()
    (tmp_path / "RESNET50").write_bytes(b"\x80\x02}q\x00.")
    assert locate(None, tmp_path) == CheckpointFile(tmp_path / "RESNET50")


def test_two_checkpoints_stay_two_beside_other_files(tmp_path: Path) -> None:
    """What is passed over is left out of the list too."""
    for name in ("a.pth", "b.onnx", "SHA256SUMS", "Thumbs.db", "notes"):
        (tmp_path / name).write_bytes(b"text" if name == "notes" else b"\x00")
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints: a\.pth, b\.onnx\."):
        locate(None, tmp_path)


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return path


@pytest.fixture
def archives(tmp_path: Path) -> list[str]:
    """Sources, photos and packed copies, of many kinds."""
    zipped(tmp_path / "sources.zip", "sources/train.py", "sources/model.pth")
    zipped(tmp_path / "photos.pth.zip", "a.jpg")
    zipped(tmp_path / "saved.zip", "saved_model.pb", "variables/variables.index")
    zipped(tmp_path / "features.npz", "x.npy")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "sources.zip").read_bytes()[:-30])
    (tmp_path / "model.pth.gz").write_bytes(gzip.compress(b"weights"))
    (tmp_path / "photos.bz2").write_bytes(bz2.compress(b"photos"))
    (tmp_path / "photos.xz").write_bytes(lzma.compress(b"photos"))
    for name, mode in (("photos.tar", "w"), ("photos.tar.gz", "w:gz"), ("photos.tgz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:  # type: ignore[call-overload]
            archive.add(tmp_path / "photos.xz", "photos.xz")
    return sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("weights", ["model.pth", "model.zip", "model.mar"])
def test_archives_beside_a_checkpoint_are_passed_over(
    weights: str, archives: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Archives of other files are no checkpoints, and the log names them; a checkpoint that is a zip stays one."""
    caplog.set_level("INFO", "app.checkpoints.locate")
    if weights.endswith(".mar"):
        zipped(tmp_path / weights, "MAR-INF/MANIFEST.json", "model.pth")
    else:
        torch.save({"fc.weight": torch.zeros(2, 3)}, tmp_path / weights)
    assert locate(None, tmp_path) == CheckpointFile(tmp_path / weights)
    assert f"archives and no checkpoints: {', '.join(archives)}." in caplog.text


def test_two_checkpoints_that_are_zips_stay_two(archives: list[str], tmp_path: Path) -> None:
    """A zip is known by what is in it, not by its name; one that is cut off may be a checkpoint."""
    torch.save({"fc.weight": torch.zeros(2, 3)}, tmp_path / "a.zip")
    (tmp_path / "b.pth").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints: a\.zip, b\.pth\."):
        locate(None, tmp_path)


def test_archives_alone_are_no_checkpoint(archives: list[str], tmp_path: Path) -> None:
    """Where only archives lie, the weights may be in one: another model is not served in their place."""
    with pytest.raises(CheckpointError, match=r"holds no checkpoint, but archives: .*Unpack the one"):
        locate(None, tmp_path)
    for name in archives[1:]:
        (tmp_path / name).unlink()
    assert locate(None, tmp_path) == CheckpointFile(tmp_path / archives[0])


def test_a_checkpoint_folder_may_have_archives(archives: list[str], tmp_path: Path) -> None:
    """A folder that is one checkpoint stays so with archives in it."""
    write(tmp_path, RESNET, CONVNEXT)
    assert locate(None, tmp_path) == CheckpointFile(tmp_path)


def test_labels_lie_in_the_folder(tmp_path: Path) -> None:
    """A label file belongs to the folder that it lies in, whether the folder or its file is named."""
    folder = write(tmp_path / "pets", RESNET, CONVNEXT)
    (folder / "labels.txt").write_text("cat\ndog\n", encoding="utf-8")
    for path in (folder, folder / "model.safetensors"):
        assert labels_beside(home_of(path)) == folder / "labels.txt"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model_type": "vit"}, "is of a vit"),
        ({"depths": [3, 4, 23, 3]}, "depths is [3, 4, 23, 3]"),
        ({"hidden_sizes": [64, 128, 256, 512]}, "hidden_sizes is"),
        ({"embedding_size": 32}, "embedding_size is 32"),
        ({"layer_type": "basic"}, 'layer_type is "basic"'),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage is true"),
        ({"num_channels": 1}, "num_channels is 1"),
        ({"downsample_in_bottleneck": "no"}, "downsample_in_bottleneck is"),
        ({"id2label": {"0": "cat", "2": "dog"}}, "id2label is no label map"),
        ({"id2label": [1, 2]}, "id2label is no label map"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "names 3 classes, but the weights have 2"),
    ],
)
def test_configs_of_other_networks_are_refused(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    """A config.json that is not a ResNet-50's is refused in one line that says what stands there."""
    folder = write(tmp_path, RESNET, CONVNEXT)
    (folder / "config.json").write_text(json.dumps(RESNET | change), encoding="utf-8")
    for path in (folder, folder / "model.safetensors"):
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"resnet"', "[" * 100_000, "\udcff"])
def test_damaged_configs_are_refused(tmp_path: Path, text: str) -> None:
    """A config.json that is no JSON object is refused in one line."""
    folder = write(tmp_path, RESNET)
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json is not (a )?JSON") as caught:
        read_checkpoint(folder)
    assert "\n" not in str(caught.value)


def _expected(short: int | None, crop: tuple[int, int], filter_: str = "bicubic", **more: Any) -> Preprocessing:
    values = {"mean": MEAN, "std": STD, "floor_crop": True} | more
    return Preprocessing(short, crop, Interpolation(filter_), **values)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"size": 224}, _expected(256, (224, 224))),
        ({"crop_pct": 0.9}, _expected(248, (224, 224))),
        ({"crop_pct": None}, _expected(256, (224, 224))),
        ({"size": {"shortest_edge": 384}}, _expected(None, (384, 384))),
        ({"size": {"height": 224, "width": 320}}, _expected(None, (224, 320))),
        ({"resample": 2}, _expected(256, (224, 224), "bilinear")),
        ({"resample": 1}, _expected(256, (224, 224), "lanczos")),
        ({"image_mean": 0.5, "image_std": 0.5}, _expected(256, (224, 224), mean=HALF, std=HALF)),
        ({"do_normalize": False}, _expected(256, (224, 224), mean=(0.0,) * 3, std=(1.0,) * 3)),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}},
            _expected(None, (224, 224)),
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 192, "width": 192}},
            _expected(224, (192, 192)),
        ),
    ],
)
def test_image_processors_are_followed(tmp_path: Path, change: dict[str, Any], expected: Preprocessing) -> None:
    """What preprocessor_config.json says of sizes, filters and normalisation becomes the model's preprocessing."""
    assert preprocessing_of(read_checkpoint(write(tmp_path, RESNET, CONVNEXT | change))) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"do_resize": False},
        {"resample": 6},
        {"size": {"longest_edge": 224}},
        {"size": {"shortest_edge": 0}},
        {"size": {"shortest_edge": 10**9}},
        {"crop_pct": 0},
        {"image_std": [0, 0, 0]},
        {"image_mean": [1, 2]},
        {"image_processor_type": "ViTImageProcessor"},
        {"rescale_factor": "1/255"},
    ],
)
def test_image_processors_that_cannot_be_followed_are_told(tmp_path: Path, change: dict[str, Any]) -> None:
    """An image processor that says something else is warned of, and Hugging Face's usual way is an assumption."""
    contents = read_checkpoint(write(tmp_path, RESNET, CONVNEXT | change))
    assert contents.told.preprocessing is not None
    assert contents.told.preprocessing.is_assumed
    assert any("which is not followed here" in line for line in contents.warnings)


def test_missing_image_processor_is_an_assumption(tmp_path: Path) -> None:
    """Without preprocessor_config.json the preprocessing is assumed, and the warning says so."""
    contents = read_checkpoint(write(tmp_path, RESNET))
    decisions = decide_all(Settings(), contents)
    assert any("assuming Hugging Face's ResNet-50" in line for line in warnings_of(contents, decisions, "pets"))


def test_timm_folder_tells_everything(tmp_path: Path) -> None:
    """timm's config.json settles the architecture, preprocessing and labels, descriptions before WordNet's numbers."""
    config = TIMM | {"label_names": ["n01", "n02"], "label_descriptions": {"n01": "cat"}}
    contents = read_checkpoint(write(tmp_path, config))
    told = contents.told
    assert contents.container == "timm folder (safetensors)"
    assert told.architecture is not None
    assert told.architecture.value == "resnet50"
    assert told.labels is not None
    assert told.labels.value == ("cat", "n02")
    assert preprocessing_of(contents) == _expected(235, (224, 224), floor_crop=False)
    assert decide_all(Settings(), contents).stride_in == told.stride_in


def test_timm_wrapper_is_a_timm_folder(tmp_path: Path) -> None:
    """What transformers' TimmWrapper saves (keys under timm_model.) is served as timm's own."""
    config = TIMM | {"model_type": "timm_wrapper", "label_names": ["LABEL_0", "LABEL_1"]}
    contents = read_checkpoint(write(tmp_path, config, prefix="timm_model."))
    assert set(contents.weights) == {"conv1.weight", "fc.weight"}
    assert contents.told.labels is None
    assert preprocessing_of(contents).resize_short_side == 235


@pytest.mark.parametrize(
    ("change", "short", "crop"),
    [
        ({"input_size": [3, 176, 176], "crop_pct": 0.875}, 201, (176, 176)),
        ({"input_size": [3, 288, 288], "crop_pct": 1.0}, 288, (288, 288)),
        ({"crop_mode": "squash", "crop_pct": 1.0}, None, (224, 224)),
    ],
)
def test_timm_sizes_are_followed(
    tmp_path: Path, change: dict[str, Any], short: int | None, crop: tuple[int, int]
) -> None:
    """The short side is floor(size / crop_pct), as timm computes it."""
    contents = read_checkpoint(write(tmp_path, TIMM | {"pretrained_cfg": PRETRAINED | change}))
    assert preprocessing_of(contents) == _expected(short, crop, floor_crop=False)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"architecture": "resnetaa50"}, "names resnetaa50, an anti-aliased network"),
        ({"architecture": "resnetblur50"}, "names resnetblur50, an anti-aliased network"),
        ({"architecture": "seresnet50"}, "names seresnet50, which is not served"),
        ({"model_args": {"aa_layer": "avg"}}, "changes resnet50 by aa_layer"),
        ({"model_args": {"output_stride": 8, "global_pool": "avg"}}, "changes resnet50 by output_stride"),
        ({"global_pool": "max"}, "changes resnet50 by global_pool"),
    ],
)
def test_timm_networks_that_only_look_like_it_are_refused(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    """A network with a ResNet-50's entries that is none is refused by the name in config.json."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(write(tmp_path, TIMM | change))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_timm_crop_that_cannot_be_followed_is_told(tmp_path: Path) -> None:
    """A crop mode that is not followed leaves the preprocessing open, with a warning."""
    contents = read_checkpoint(write(tmp_path, TIMM | {"pretrained_cfg": PRETRAINED | {"crop_mode": "border"}}))
    assert contents.told.preprocessing is None
    assert any('crop_mode is "border"' in line for line in contents.warnings)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    """A link that leads out of a checkpoint's folder is refused in one line that says what to do."""
    folder = write(tmp_path / "pets", RESNET, CONVNEXT)
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=r"is a link that leads out of its folder\. .*cp -rL") as caught:
        read_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    """A link to a file of the same folder is the file."""
    folder = write(tmp_path / "pets", RESNET, CONVNEXT)
    (folder / "model.safetensors").rename(folder / "blob")
    (folder / "model.safetensors").symlink_to("blob")
    assert read_checkpoint(folder).weights["fc.weight"].shape == (2, 2048)


def test_folder_that_is_no_checkpoint_says_what_one_is(tmp_path: Path) -> None:
    """A folder without weights is refused with the layouts that are read."""
    with pytest.raises(CheckpointError, match="a folder that is no checkpoint"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(RESNET), encoding="utf-8")
    with pytest.raises(CheckpointError, match="a Hugging Face folder without weights"):
        read_checkpoint(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["0", "1", "height"]), inner),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_config_gives_a_decision_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever values stand in the configurations, the answer is what they tell or a StartError in one line."""
    folder = tmp_path_factory.mktemp("any")
    processor = CONVNEXT | data.draw(st.dictionaries(st.sampled_from([*CONVNEXT, "do_resize", "crop_size"]), JSON))
    pretrained = PRETRAINED | data.draw(st.dictionaries(st.sampled_from([*PRETRAINED, "crop_mode"]), JSON))
    keys = st.sampled_from(["depths", "id2label", "downsample_in_bottleneck", "label_names", "model_args"])
    change = data.draw(st.dictionaries(keys, JSON))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    for config, read in (
        (RESNET | change, read_hugging_face),
        (TIMM | {"pretrained_cfg": pretrained} | change, read_timm),
    ):
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        refusal = ""
        try:
            read(folder)
        except StartError as error:
            refusal = str(error)
        assert "\n" not in refusal
