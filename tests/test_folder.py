"""Folders with every oddity we could think of, and the real radiographs where they are."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data_prep.folder import Columns, main, prepare_folder
from medsign_lite.data import read_manifest
from medsign_lite.images import load_image
from tests.dicom_files import write_dicom
from tests.source_folders import noise, save, write_table

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "cxr"


def prepare(source: Path, out: Path, **options):
    return prepare_folder(source, out, **({"size": 32, "progress": False} | options))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten grey images of five patients, and a table."""
    folder = tmp_path / "source"
    rows = []
    for number in range(10):
        name = f"Doe_{number}.png"
        save(folder / name, noise(48, 40, seed=number))
        rows.append(
            {
                "file": name,
                "text": f"Small right  effusion\nin study {number}.",
                "labels": "Effusion|No Finding" if number % 2 else "No Finding",
                "person": f"MRN-77{number // 2}",
            }
        )
    write_table(tmp_path / "table.csv", rows)
    return folder


COLUMNS = Columns(image="file", report="text", findings="labels", patient="person")


def test_prepare_folder_writes_what_the_table_says(source, tmp_path):
    path, summary = prepare(
        source, tmp_path / "out", table=tmp_path / "table.csv", columns=COLUMNS, modality="chest"
    )
    records = read_manifest(path)  # opens every file
    assert len(records) == summary.kept.total() == 10 and not summary.dropped
    for record in records:
        number = int(record.report.split()[-1].rstrip("."))
        assert record.report == f"Small right effusion in study {number}."
        assert record.findings == (("effusion",) if number % 2 else ())
        assert record.words == (("effusion",) if number % 2 else ())
        # 48 x 40 is cropped to its middle 40 x 40 and scaled: the mean stays about the same.
        expected = noise(48, 40, seed=number)[4:44].mean() / 255
        image = load_image(record.image)
        assert image.shape == (3, 32, 32)
        assert float(image.mean()) == pytest.approx(expected, abs=0.004)


def test_prepare_folder_keeps_a_patient_in_one_split(source, tmp_path):
    path, summary = prepare(
        source, tmp_path / "out", table=tmp_path / "table.csv", columns=COLUMNS,
        shares=(0.6, 0.2, 0.2),
    )  # fmt: skip
    splits: dict[int, set] = {}
    for record in read_manifest(path):
        number = int(record.report.split()[-1].rstrip("."))
        splits.setdefault(number // 2, set()).add(record.split)
    assert len(splits) == 5 and all(len(found) == 1 for found in splits.values())
    assert summary.kept == {"train": 6, "validation": 2, "test": 2}


def test_prepare_folder_copies_nothing_that_identifies(source, tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("PatientName", "Doe^Jane")
    save(source / "Doe_0.png", noise(48, 40), pnginfo=text)
    exif = Image.Exif()
    exif[0x010E] = "Doe^Jane"
    save(source / "Doe_1.jpg", noise(48, 40, 3), exif=exif)
    out = tmp_path / "out"
    prepare(source, out)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) == 11 + 2  # images, manifest and claim
    for path in files:
        assert b"Doe" not in path.read_bytes() and b"MRN" not in path.read_bytes()
        assert "Doe" not in path.name


def test_prepare_folder_without_a_table_takes_every_image(source, tmp_path):
    save(source / "deeper" / "Doe_0.png", noise(64, 64))  # a name that occurs twice
    (source / "notes.txt").write_text("not an image")
    path, summary = prepare(source, tmp_path / "out")
    records = read_manifest(path)
    assert len(records) == len({record.image for record in records}) == 11
    assert summary.kept == {"train": 9, "validation": 1, "test": 1}


def test_prepare_folder_takes_dicom_without_an_ending(tmp_path):
    ramp = np.tile(np.arange(0, 3200, 100, dtype=np.uint16), (32, 1))
    write_dicom(tmp_path / "source" / "Roe" / "IM0001", ramp)
    write_dicom(tmp_path / "source" / "DICOMDIR", ramp)
    (tmp_path / "source" / "README").write_text("not an image")
    (tmp_path / "source" / "Roe" / "notes.txt").write_text("neither")
    path, summary = prepare(tmp_path / "source", tmp_path / "out")
    (record,) = read_manifest(path)
    expected = np.broadcast_to(np.round(np.arange(32) * 255 / 31) / 255, (3, 32, 32))
    np.testing.assert_allclose(load_image(record.image).numpy(), expected, atol=1e-6)
    assert summary.kept.total() == 1 and not summary.dropped
    assert str(summary).endswith(
        "note: 2 other files left out: no image by ending, no DICOM by content"
    )


def test_prepare_folder_needs_pydicom_for_dicom_without_an_ending(tmp_path, monkeypatch):
    write_dicom(tmp_path / "source" / "IM0001", np.zeros((32, 32), np.uint16))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ModuleNotFoundError, match="needs pydicom"):
        prepare(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prepare_folder_order_and_splits_follow_the_seed(source, tmp_path):
    first, again, other = (
        prepare(source, tmp_path / name, seed=seed)[0]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.read_bytes() == again.read_bytes()
    pixels = [load_image(p.parent / "images" / "000000.png").mean() for p in (first, again, other)]
    assert pixels[0] == pixels[1] != pixels[2]


def converted(tmp_path: Path, **options) -> np.ndarray:
    """The one image of a folder with one image, after conversion."""
    path, _ = prepare(tmp_path / "source", tmp_path / "out", **options)
    (record,) = read_manifest(path)
    return load_image(record.image).numpy()


def test_prepare_folder_stretches_16_bits(tmp_path):
    ramp = np.linspace(1000, 5000, 32).astype(np.uint16)
    save(tmp_path / "source" / "a.png", np.tile(ramp, (32, 1)))
    expected = (ramp - 1000.0) / 4000
    np.testing.assert_allclose(converted(tmp_path)[0, 5], expected, atol=0.5 / 255 + 1e-6)


def test_prepare_folder_lays_transparency_on_black(tmp_path):
    pixels = np.full((32, 32, 4), 200, dtype=np.uint8)
    pixels[:, :16, 3] = 0
    pixels[:, 16:, 3] = 255
    save(tmp_path / "source" / "a.png", pixels)
    image = converted(tmp_path)
    assert image[:, :, :16].max() == 0
    assert np.allclose(image[:, :, 16:], 200 / 255)


def test_prepare_folder_turns_upright(tmp_path):
    pixels = np.zeros((64, 64), dtype=np.uint8)
    pixels[:32] = 255  # bright above; the tag says: turn by 180 degrees
    exif = Image.Exif()
    exif[0x0112] = 3
    save(tmp_path / "source" / "a.jpg", pixels, exif=exif)
    image = converted(tmp_path)
    assert image[:, :12].max() < 0.1 and image[:, 20:].min() > 0.9


def test_prepare_folder_drops_what_it_cannot_use_and_says_why(source, tmp_path):
    whole = (source / "Doe_0.png").read_bytes()
    (source / "Doe_0.png").write_bytes(whole[: len(whole) // 2])
    (source / "Doe_1.png").write_bytes(b"")
    (source / "Doe_2.png").write_bytes(b"no image at all")
    save(source / "Doe_3.png", noise(48, 31))
    path, summary = prepare(source, tmp_path / "out")
    assert summary.dropped == {
        "truncated, damaged, or not an image": 3,
        "smaller than 32 pixels": 1,
    }
    assert len(read_manifest(path)) == summary.kept.total() == 6
    assert "Doe" not in str(summary) and "kept 6" in str(summary)


def test_prepare_folder_drops_rows_it_cannot_use_and_says_why(source, tmp_path):
    save(source / "a" / "same.png", noise(48, 48))
    save(source / "b" / "same.png", noise(48, 48))
    rows = [
        {"file": "Doe_0.png", "person": "1"},
        {"file": "Doe_0.png", "person": "2"},
        {"file": "Doe_1.png", "person": ""},
        {"file": "absent.png", "person": "3"},
        {"file": "../table.csv", "person": "4"},
        {"file": r"C:\images\Doe_2.png", "person": "4"},
        {"file": "same.png", "person": "5"},
        {"file": "b/same.png", "person": "6"},
    ]
    table = write_table(tmp_path / "odd.csv", rows)
    columns = Columns(image="file", patient="person")
    _, summary = prepare(source, tmp_path / "out", table=table, columns=columns)
    assert summary.kept.total() == 2  # Doe_0.png and b/same.png
    assert summary.dropped == {
        "named by an earlier row, too": 1,
        "its row names no patient": 1,
        "its row names no image of the source": 1,
        "its row names a path outside of the source": 2,
        "its row names several images: the name alone is not unique": 1,
        "in the folder, but in no usable row of the table": 10,
    }


def test_prepare_folder_resumes_without_converting_again(source, tmp_path):
    out = tmp_path / "out"
    path, _ = prepare(source, out)
    manifest = path.read_bytes()
    images = sorted((out / "images").iterdir())
    kept, lost = images[0], images[1]
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    path.unlink()
    prepare(source, out)
    assert path.read_bytes() == manifest
    assert lost.is_file() and kept.stat().st_mtime_ns == stamp


def test_prepare_folder_refuses_another_conversion_in_the_same_place(source, tmp_path):
    prepare(source, tmp_path / "out")
    with pytest.raises(ValueError, match=r"another conversion \(other seed, digest\)"):
        prepare(source, tmp_path / "out", seed=1)
    save(source / "new.png", noise(48, 48))
    with pytest.raises(ValueError, match=r"other images, digest"):
        prepare(source, tmp_path / "out")


def test_prepare_folder_refuses_a_folder_with_other_content(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="new or empty folder"):
        prepare(source, tmp_path / "out")


def test_prepare_folder_refuses_to_write_outside(source, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    prepare(source, tmp_path / "out")
    for path in (tmp_path / "out" / "images").iterdir():
        path.unlink()
    (tmp_path / "out" / "images").rmdir()
    (tmp_path / "out" / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leads out of the folder"):
        prepare(source, tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("inside", ["", "out", ".."], ids=["same", "inside", "above"])
def test_prepare_folder_refuses_an_out_that_overlaps_the_source(source, inside):
    with pytest.raises(ValueError, match="apart from the source"):
        prepare(source, source / inside)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"modality": "knee"}, ValueError, "modality must be one of"),
        ({"shares": (0.5, 0.5, 0.5)}, ValueError, "three shares that sum to 1"),
        ({"table": "absent.csv", "columns": COLUMNS}, FileNotFoundError, "no table"),
        ({"table": "absent.csv"}, ValueError, "needs columns"),
        ({"size": 16}, ValueError, "at least 32 pixels, got 16"),
    ],
    ids=["modality", "shares", "table", "columns", "size"],
)
def test_prepare_folder_refuses(source, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        prepare(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()  # nothing was begun


def test_prepare_folder_names_a_missing_column(source, tmp_path):
    with pytest.raises(ValueError, match=r"no column 'File' in its first row \(is it 'file'\?\)"):
        prepare(
            source, tmp_path / "out", table=tmp_path / "table.csv", columns=Columns(image="File")
        )


def test_prepare_folder_refuses_an_empty_one(tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(ValueError, match="no image to convert"):
        prepare(tmp_path / "source", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no folder at"):
        prepare(tmp_path / "absent", tmp_path / "out")


def test_main_converts_and_prints_the_summary(source, tmp_path, capsys):
    main(
        f"--source {source} --out {tmp_path / 'out'} --csv {tmp_path / 'table.csv'} --size 40 "
        "--image-column file --findings-column labels --patient-column person".split()
    )
    assert "kept 10 (6 train, 2 validation, 2 test), dropped 0" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["size"] == 40
    assert {r.report for r in read_manifest(tmp_path / "out")} == {""}


@pytest.mark.skipif(not REAL.is_dir(), reason="no real radiographs beside this checkout")
def test_prepare_folder_takes_real_radiographs(tmp_path):
    with (REAL / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = write_table(tmp_path / "some.csv", rows[:12])
    columns = Columns(image="filename", findings="finding_labels", patient="patient_id")
    path, summary = prepare(REAL, tmp_path / "out", table=table, columns=columns, size=128)
    records = read_manifest(path)
    assert len(records) == summary.kept.total() == 12
    assert summary.dropped == {"in the folder, but in no usable row of the table": 208}
    findings = {finding for record in records for finding in record.findings}
    assert {"pneumonia", "effusion"} <= findings and "no finding" not in findings
    image = load_image(records[0].image)
    assert image.shape == (3, 128, 128) and 0.05 < float(image.std()) < 0.5
    names = [row["filename"].removesuffix(".png") for row in rows]
    assert not any(name in path.read_text() for name in names)
