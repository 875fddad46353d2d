"""Photos and their classes: folders, tables, and every way of writing a class of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.checkpoints import PRESETS
from app.errors import EvaluationError
from app.evaluation import find_photos
from app.evaluation.matching import match_classes
from app.evaluation.photos import Found, Photo, in_order
from app.images import decode, decode_for_each
from app.labels import imagenet_labels
from tests.photos import LIMITS, make_jpeg

LABELS = ("tench, Tinca tinca", "great_white_shark", "Tiger Shark", "cock", "cock", "drake")


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(make_jpeg(1, (32, 24)))
    return folder


def named(*names: str) -> Found:
    return Found(tuple(Photo(Path(name), name, (name,)) for name in names))


def test_a_folder_of_folders_has_a_class_for_each(tmp_path: Path) -> None:
    """The first folder below names the class, whatever lies deeper; loose photos are counted and left out."""
    write(tmp_path, "cat/a.jpg", "cat/deep/b.jpg", "dog/c.jpg", "loose.jpg", ".hidden/d.jpg")
    (tmp_path / "cat" / "notes.txt").write_text("no photo")
    found = find_photos(tmp_path)
    assert {photo.name: photo.written for photo in found.photos} == {
        "cat/a.jpg": ("cat",),
        "cat/deep/b.jpg": ("cat",),
        "dog/c.jpg": ("dog",),
    }
    assert (found.without_label, found.other_files, found.is_labelled) == (1, 1, True)


def test_a_folder_of_photos_has_no_labels(tmp_path: Path) -> None:
    """A flat folder is unlabelled, and a CSV in it is pointed to."""
    write(tmp_path, "a.jpg", "b.jpg")
    assert not find_photos(tmp_path).is_labelled
    assert find_photos(tmp_path).hint == ""
    (tmp_path / "labels.csv").write_text("a.jpg,cat\n")
    assert "labels.csv" in find_photos(tmp_path).hint


@pytest.mark.parametrize(
    "text",
    [
        "file,label\na.jpg,cat\nb c.jpg,dog\n",
        "label,split,filename\ncat,val,a.jpg\ndog,val,b c.jpg\n",
        "a.jpg,cat\nb c.jpg,dog\n",
        "\ufefffile;class\r\na.jpg;cat\r\nb c.jpg;dog\r\n",
        "bild\tklasse\na.jpg\tcat\nb c.jpg\tdog\n",
        '"file","label"\n"a.jpg","cat"\n"b c.jpg","dog"\n\n',
    ],
)
def test_a_table_names_files_and_labels(tmp_path: Path, text: str) -> None:
    """With or without a header, in any order of columns, with commas, semicolons or tabs; relative to the table."""
    write(tmp_path, "a.jpg", "b c.jpg")
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8", newline="")
    found = find_photos(tmp_path / "labels.csv")
    assert {photo.name: photo.written for photo in found.photos} == {"a.jpg": ("cat",), "b c.jpg": ("dog",)}
    assert all(photo.path.is_file() for photo in found.photos)


def test_a_file_in_several_rows_has_several_labels(tmp_path: Path) -> None:
    """Rows of one file are one photo of several classes; a row without a label is left out and counted."""
    write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "labels.csv").write_text("file,label\na.jpg,cat\na.jpg,dog\nb.jpg,\n")
    found = find_photos(tmp_path / "labels.csv")
    assert [photo.written for photo in found.photos] == [("cat", "dog")]
    assert found.without_label == 1


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "has no photos"),
        (("train/cat/a.jpg", "val/cat/b.jpg"), "Name one of them"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    """A folder without photos, and one of training and validation halves, are told apart from classes."""
    with pytest.raises(EvaluationError, match=said):
        find_photos(write(tmp_path, *names))


@pytest.mark.parametrize(("data", "said"), [(b"", "is empty"), (b"\xff\xfe\x00", "no CSV"), (b"x.jpg,1\n", "no photo")])
def test_a_table_of_something_else_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    """An empty table, one that is no text, and one whose files are elsewhere are refused in one line."""
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(EvaluationError, match=said) as caught:
        find_photos(tmp_path / "labels.csv")
    assert "\n" not in str(caught.value)
    with pytest.raises(EvaluationError, match="no folder and no file"):
        find_photos(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("written", "index"),
    [
        ("great_white_shark", 1),
        ("Great White Shark", 1),
        ("great-white-shark", 1),
        ("tench", 0),
        ("Tench, whatever", 0),
        ("tiger shark", 2),
        ("2", 2),
        ("0002", 2),
        ("n01847000_drake", 5),
        ("098.drake", 5),
    ],
)
def test_a_class_is_matched_however_it_is_written(written: str, index: int) -> None:
    """By label, by index, without case or underscores, by the first synonym, behind a number."""
    assert match_classes(named(written), LABELS).classes == {written: (index,)}


def test_what_is_no_class_is_told_apart() -> None:
    """A name that two labels have, an index too high and an unknown name match nothing, the others still do."""
    matched = match_classes(named("cock", "6", "walrus", "drake", "drake|tench", "drake|walrus"), LABELS)
    assert matched.classes == {"drake": (5,), "drake|tench": (5, 0)}
    assert set(matched.unmatched) == {"cock", "6", "walrus", "drake|walrus"}


def test_a_label_that_is_a_number_is_no_index() -> None:
    """Of a model whose labels are numbers, a folder is called by its label."""
    assert match_classes(named("3"), ("1", "2", "3")).classes == {"3": (2,)}


def test_a_thousand_wordnet_ids_are_imagenets_classes() -> None:
    """ImageNet's own folders, sorted, are its classes, behind the background where there is one."""
    ids = [f"n{number:08}" for number in range(1_000_000, 3_000_000, 2_000)]
    found = named(*reversed(ids))
    assert match_classes(found, imagenet_labels()).classes[ids[7]] == (7,)
    assert match_classes(found, ("background", *imagenet_labels())).classes[ids[7]] == (8,)


def test_as_many_unknown_folders_as_classes_are_taken_in_order() -> None:
    """Folders that are no labels are taken in the order of their names where they are as many as the classes."""
    matched = match_classes(named("elm", "ash", "oak"), ("0a", "1a", "2a"))
    assert matched.labels == ("ash", "elm", "oak")
    assert matched.classes == {"ash": (0,), "elm": (1,), "oak": (2,)}
    assert "their order by name is assumed" in matched.note
    with pytest.raises(EvaluationError, match="None of the 2 classes"):
        match_classes(named("elm", "ash"), ("0a", "1a", "2a"))


def test_every_beginning_of_the_order_has_each_class() -> None:
    """The order is the same each time, is none of names, and its first tenth has every class in its share."""
    photos = [Photo(Path(f"{number}"), f"{number}", ("a" if number < 80 else "b",)) for number in range(100)]
    order = in_order(photos)
    assert order == in_order(photos)
    assert sorted(photo.name for photo in order) == sorted(photo.name for photo in photos)
    assert order != photos
    assert sum(photo.written == ("b",) for photo in order[:10]) == 2
    assert len(in_order(photos, 30)) == 30


def test_one_decoding_gives_the_pixels_of_each() -> None:
    """A photo that is decoded once for several preprocessings has each one's own pixels."""
    photo = make_jpeg(3)
    for preprocessing, pixels in zip(
        PRESETS.values(), decode_for_each(photo, [*PRESETS.values()], LIMITS), strict=True
    ):
        assert (pixels == decode(photo, preprocessing, LIMITS)).all()
