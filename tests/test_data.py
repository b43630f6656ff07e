"""The manifest: what was written is read back, and everything wrong is named."""

import dataclasses
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from PIL import Image

from medsign_lite.data import (
    CHEST_FINDINGS,
    COLUMNS,
    FUNDUS_FINDINGS,
    ManifestDataset,
    Record,
    load_mask,
    pictures_digest,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path):
    """A data set of two images, of which the first has two findings, one without a mask."""
    Image.new("L", (6, 4), 51).save(tmp_path / "a.png")
    mask = Image.new("L", (6, 4), 0)
    mask.putpixel((5, 0), 255)
    mask.save(tmp_path / "a-mask.png")
    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "b.png")
    records = [
        Record(
            id="a",
            image=tmp_path / "a.png",
            modality="chest",
            split="train",
            report='Right effusion, "small", and cardiomegaly.',
            findings=("effusion", "cardiomegaly"),
            words=("effusion", "cardiomegaly"),
            sides=("right", ""),
            masks=(tmp_path / "a-mask.png", None),
        ),
        Record(
            id="b",
            image=tmp_path / "b.png",
            modality="fundus",
            split="test",
            report="Normal right eye.",
        ),
    ]
    write_manifest(tmp_path / "manifest.csv", records)
    return tmp_path, records


def test_manifest_round_trip(folder):
    path, records = folder
    assert read_manifest(path / "manifest.csv") == records
    assert read_manifest(path) == records  # the folder stands for its manifest.csv


def test_manifest_paths_are_relative_so_that_the_folder_can_move(folder, tmp_path_factory):
    path, _ = folder
    assert str(path) not in (path / "manifest.csv").read_text()
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    path.rename(moved)
    assert read_manifest(moved)[0].image == moved / "a.png"


def test_relative_paths_of_records_are_the_callers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("made").mkdir()
    record = Record(id="a", image=Path("made/a.png"), modality="chest", split="test", report="x")
    write_manifest(Path("made/manifest.csv"), [record])
    assert read_manifest("made", check_files=False)[0].image == tmp_path / "made" / "a.png"


def test_pictures_have_a_name_until_they_are_drawn_anew(folder, tmp_path_factory):
    path, records = folder
    name = pictures_digest(records)
    assert name == pictures_digest(records) and len(name) == 12
    again = read_manifest(shutil.copytree(path, tmp_path_factory.mktemp("moved") / "data"))
    assert pictures_digest(again) == name
    with again[0].image.open("ab") as file:
        file.write(b"more")
    assert pictures_digest(again) != name
    again[0].image.unlink()
    assert pictures_digest(again) != name


def test_dataset_items_worked_by_hand(folder):
    path, records = folder
    dataset = ManifestDataset(records, split="train")
    assert len(dataset) == 1 and dataset.findings == CHEST_FINDINGS + FUNDUS_FINDINGS
    item = dataset[0]
    assert item["image"].shape == (3, 4, 6)
    torch.testing.assert_close(item["image"], torch.full((3, 4, 6), 0.2))
    present = [name for name, label in zip(dataset.findings, item["labels"], strict=True) if label]
    assert present == ["effusion", "cardiomegaly"] or present == ["cardiomegaly", "effusion"]
    effusion = item["masks"][dataset.findings.index("effusion")]
    assert effusion.sum() == 1 and effusion[0, 5] == 1
    assert item["masks"].sum() == 1  # cardiomegaly has no mask


def test_dataset_of_one_modality_has_its_findings_only(folder):
    _, records = folder
    dataset = ManifestDataset(records, modality="fundus")
    assert dataset.findings == FUNDUS_FINDINGS
    assert dataset[0]["labels"].tolist() == [0.0] * len(FUNDUS_FINDINGS)


def test_dataset_without_records_says_what_was_asked(folder):
    with pytest.raises(ValueError, match="no record of split 'validation' and modality 'chest'"):
        ManifestDataset(folder[1], split="validation", modality="chest")


def rewrite(path, old: str, new: str) -> None:
    text = (path / "manifest.csv").read_text()
    assert old in text
    (path / "manifest.csv").write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("report", "caption", r"missing columns \['report'\], unknown columns \['caption'\]"),
        ("b,b.png", "a,b.png", "line 3: id 'a' is already on line 2"),
        (",chest,", ",knee,", "line 2: record 'a': modality must be one of .* got 'knee'"),
        (",test,", ",exam,", "line 3: record 'b': split must be one of .* got 'exam'"),
        ("right|", "port|", "line 2: record 'a': sides must be one of .* got 'port'"),
        ("effusion|cardiomegaly,right", "effusion,right", "lists of different lengths"),
        ("effusion|cardiomegaly,right", "fluid|cardiomegaly,right",
         "line 2: record 'a': one of its words is not in its report$"),
        ("b,b.png", "b,../b.png", "leaves the manifest's folder"),
        ("b,b.png", ",b.png", "line 3: a record needs an id"),
    ],
    ids=["column", "duplicate", "modality", "split", "side", "lengths", "word", "escape", "no id"],
)  # fmt: skip
def test_wrong_manifest_is_named(folder, old, new, expected):
    path, _ = folder
    rewrite(path, old, new)
    with pytest.raises(ValueError, match=expected):
        read_manifest(path)


def test_a_report_is_never_quoted(folder):
    record = folder[1][0]
    with pytest.raises(ValueError, match="record 'a': one of its words") as caught:
        dataclasses.replace(record, report="Jane Roe has a secret.")
    assert "Roe" not in str(caught.value) and "effusion" not in str(caught.value)


def test_manifest_of_a_spreadsheet_begins_with_a_mark(folder):
    path, records = folder
    text = (path / "manifest.csv").read_text(encoding="utf-8")
    (path / "manifest.csv").write_text(text, encoding="utf-8-sig")
    assert read_manifest(path) == records


def test_lines_are_those_of_the_file(folder):
    path, (first, second) = folder
    report = "Right effusion,\nsmall.\n\nCardiomegaly."  # lines 2 to 5
    records = [dataclasses.replace(first, report=report), second]
    write_manifest(path / "manifest.csv", records)
    assert read_manifest(path) == records
    rewrite(path, "b,b.png", "a,b.png")
    with pytest.raises(ValueError, match="line 6: id 'a' is already on line 5"):
        read_manifest(path)


@pytest.mark.parametrize("column", ["findings", "words"])
def test_record_refuses_what_would_be_read_as_two_entries(folder, column):
    record = folder[1][0]
    entries = ("effusion|small", "cardiomegaly")
    with pytest.raises(ValueError, match=f"record 'a': expected {column} without a vertical bar"):
        dataclasses.replace(record, report="effusion|small cardiomegaly", **{column: entries})


def test_write_manifest_refuses_a_mask_that_would_be_read_as_two(folder):
    path, (record, _) = folder
    masks = (path / "a|b.png", None)
    with pytest.raises(ValueError, match="record 'a': expected masks' paths without a vertical"):
        write_manifest(path / "manifest.csv", [dataclasses.replace(record, masks=masks)])


def test_missing_cell_is_named(folder):
    path, _ = folder
    with (path / "manifest.csv").open("a") as file:
        file.write("c,b.png,chest\n")
    with pytest.raises(ValueError, match=f"line 4: expected {len(COLUMNS)} cells, got 3"):
        read_manifest(path)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest at .*nowhere.csv"):
        read_manifest(tmp_path / "nowhere.csv")
    (folder[0] / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"line 2: no file at .*a\.png"):
        read_manifest(folder[0])
    assert len(read_manifest(folder[0], check_files=False)) == 2


def test_unreadable_images_are_named(folder):
    path, _ = folder
    whole = (path / "b.png").read_bytes()
    (path / "b.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"line 3: .*b\.png is empty \(zero bytes\)"):
        read_manifest(path)
    (path / "b.png").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"line 3: .*b\.png is truncated"):
        read_manifest(path)
    (path / "b.png").write_bytes(b"not an image at all")
    with pytest.raises(ValueError, match=r"line 3: .*b\.png is not a readable image"):
        read_manifest(path)


def test_mask_of_another_size_is_named(folder):
    path, _ = folder
    Image.new("L", (6, 5), 0).save(path / "a-mask.png")
    expected = r"line 2: mask a-mask.png is \(6, 5\) pixels, its image \(6, 4\)"
    with pytest.raises(ValueError, match=expected):
        read_manifest(path)


def test_empty_manifest_is_refused(tmp_path):
    write_manifest(tmp_path / "manifest.csv", [])
    with pytest.raises(ValueError, match="expected at least one row"):
        read_manifest(tmp_path)


def test_write_manifest_refuses_files_outside_its_folder(folder, tmp_path_factory):
    path, records = folder
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(ValueError, match="lies outside the manifest's folder"):
        write_manifest(elsewhere / "manifest.csv", records)
    # The one that was there is still whole.
    assert read_manifest(path) == records


def test_write_manifest_leaves_the_earlier_one_when_records_fail(folder):
    path, records = folder

    def interrupted():
        yield records[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(path / "manifest.csv", interrupted())
    assert read_manifest(path) == records
    assert sorted(file.suffix for file in path.iterdir()) == [".csv", ".png", ".png", ".png"]


def test_paths_that_leave_the_folder_through_a_link_are_refused(folder, tmp_path_factory):
    path, _ = folder
    outside = tmp_path_factory.mktemp("outside")
    (path / "b.png").rename(outside / "b.png")
    (path / "b.png").symlink_to(outside / "b.png")
    with pytest.raises(ValueError, match=r"line 3: the path 'b.png' leaves the manifest's folder"):
        read_manifest(path)
    (path / "linked").symlink_to(outside)
    rewrite(path, "b,b.png", "b,linked/b.png")
    with pytest.raises(ValueError, match="the path 'linked/b.png' leaves the manifest's folder"):
        read_manifest(path)


def test_a_hundred_thousand_rows_fit_in_a_gibibyte(tmp_path):
    count = 250  # memory grows with the rows: 400 times this is a hundred thousand

    def records():
        for number in range(count):
            yield Record(
                id=f"chest-{number:06d}",
                image=tmp_path / "images" / f"{number:06d}.png",
                modality="chest",
                split="train",
                report=f"Small right pleural effusion, number {number}. " + "Unchanged. " * 20,
                findings=("effusion",),
                words=("effusion",),
                sides=("right",),
                masks=(tmp_path / "masks" / f"{number:06d}-effusion.png",),
            )

    tracemalloc.start()
    try:
        path = write_manifest(tmp_path / "manifest.csv", records())
        written = tracemalloc.get_traced_memory()[1]
        found = read_manifest(path, check_files=False)
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == count
    assert written < 2**20  # row by row
    assert read * (100_000 / count) < 2**30


def test_record_is_immutable(folder):
    with pytest.raises(dataclasses.FrozenInstanceError):
        folder[1][0].split = "test"


def test_load_mask_refuses_colour(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="expected 8-bit grey, got mode RGB"):
        load_mask(tmp_path / "mask.png")
