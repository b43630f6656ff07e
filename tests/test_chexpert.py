"""Folders of the shape of CheXpert, with made-up content."""

from pathlib import Path

import pytest

from data_prep.chexpert import main, prepare_chexpert
from data_prep.findings import CHEXPERT_LABELS
from data_prep.identifiers import scan
from medsign_lite.data import read_manifest
from tests.source_folders import noise, save, truncate, words_written, write_table


def row(path: str, view: str = "Frontal", **labels: str) -> dict:
    cells = {label: "" for label in CHEXPERT_LABELS} | {
        name.replace("_", " "): value for name, value in labels.items()
    }
    return {
        "Path": path,
        "Sex": "Female",
        "Age": "71",
        "Frontal/Lateral": view,
        "AP/PA": "AP",
    } | cells


def image_path(patient: int, *, part: str = "train", view: str = "view1_frontal") -> str:
    return f"CheXpert-v1.0-small/{part}/patient{patient:05d}/study1/{view}.jpg"


@pytest.fixture
def rows() -> dict[str, list[dict]]:
    return {
        "train": [
            row(image_path(1), Cardiomegaly="1.0", Edema="1.0", Pleural_Effusion="1.0"),
            row(image_path(1, view="view2_lateral"), "Lateral", Cardiomegaly="1.0"),
            row(image_path(2), No_Finding="1.0"),
            row(image_path(3), No_Finding="1.0", Support_Devices="1.0"),
            row(image_path(4), Pneumonia="-1.0", Lung_Opacity="1.0", Fracture="0.0"),
            row(image_path(5), Pneumonia="-1.0"),
        ],
        "valid": [row(image_path(64541, part="valid"), Pneumothorax="1.0")],
    }


def write(folder: Path, rows: dict[str, list[dict]]) -> Path:
    for part, lines in rows.items():
        write_table(folder / f"{part}.csv", lines)
        for number, line in enumerate(lines):
            if ".." not in line["Path"] and line["Path"].endswith(".jpg"):
                save(folder / line["Path"].split("/", 1)[1], noise(40, 48, seed=number))
    return folder


def prepare(source: Path, out: Path, **options):
    options = {"size": 32, "progress": False, "validation_share": 0.0} | options
    return prepare_chexpert(source, out, **options)


def test_prepare_chexpert_worked_by_hand(rows, tmp_path):
    path, summary = prepare(write(tmp_path / "source", rows), tmp_path / "out")
    records = read_manifest(path)
    assert {(r.split, r.report): dict(zip(r.findings, r.words, strict=True)) for r in records} == {
        ("train", "Chest radiograph with cardiomegaly, pulmonary edema and pleural effusion."): {
            "cardiomegaly": "cardiomegaly", "edema": "edema", "effusion": "effusion"},
        ("train", "Normal chest radiograph."): {},
        ("train", "Chest radiograph with support devices."): {"support devices": "support devices"},
        ("train", "Chest radiograph with lung opacity."): {"lung opacity": "lung opacity"},
        ("test", "Chest radiograph with pneumothorax."): {"pneumothorax": "pneumothorax"},
    }  # fmt: skip
    assert summary.dropped == {"no frontal view": 1, "no positive label to make a prompt of": 1}


def test_prepare_chexpert_reads_labels_by_name(rows, tmp_path):
    first, _ = prepare(write(tmp_path / "a", rows), tmp_path / "out_a")
    turned = {part: [dict(reversed(line.items())) for line in rows[part]] for part in rows}
    second, _ = prepare(write(tmp_path / "b", turned), tmp_path / "out_b")
    assert first.read_bytes() == second.read_bytes()


def test_prepare_chexpert_holds_patients_out(tmp_path):
    lines = [row(image_path(patient, view=f"view{view}_frontal"), Edema="1.0")
             for patient in range(1, 11) for view in (1, 2)]  # fmt: skip
    rows = {"train": lines, "valid": [row(image_path(64541, part="valid"), Edema="1.0")]}
    source = write(tmp_path / "source", rows)
    _, summary = prepare(source, tmp_path / "out", validation_share=0.2)
    assert summary.kept == {"train": 16, "validation": 4, "test": 1}
    _, summary = prepare(source, tmp_path / "few", validation_share=0.2, train=3, validation=1)
    assert summary.kept == {"train": 3, "validation": 1, "test": 1}


def test_prepare_chexpert_writes_nothing_that_identifies(rows, tmp_path, capsys):
    source = write(tmp_path / "source", rows)
    main(f"--source {source} --out {tmp_path / 'out'} --size 32 --validation-share 0".split())
    printed = "".join(capsys.readouterr())
    assert "kept 5 (4 train, 0 validation, 1 test), dropped 2" in printed
    secret = ["patient", "view1", "CheXpert", "Female", "71"]
    assert scan([source]) and not scan([tmp_path / "out"])
    assert not words_written(tmp_path / "out", secret[:4])
    assert not any(word in printed for word in secret[:4])
    assert ",71," not in (tmp_path / "out" / "manifest.csv").read_text()


def test_prepare_chexpert_drops_what_it_cannot_use(rows, tmp_path):
    rows["train"] += [
        row("CheXpert-v1.0-small/../../patient00009/view1_frontal.jpg", Edema="1.0"),
        row("CheXpert-v1.0-small/train/unknown/view1_frontal.jpg", Edema="1.0"),
        row(image_path(7), Edema="1.0"),
        dict.fromkeys(rows["train"][0], ""),
        row(image_path(8), Edema="1.0"),
    ]
    source = write(tmp_path / "source", rows)
    truncate(source / "train/patient00007/study1/view1_frontal.jpg")
    (source / "train/patient00008/study1/view1_frontal.jpg").unlink()
    _, summary = prepare(source, tmp_path / "out")
    assert summary.kept.total() == 5
    del summary.dropped["no frontal view"], summary.dropped["no positive label to make a prompt of"]
    assert summary.dropped == {
        "its row names a path outside of the source": 1,
        "its path names no patient": 1,
        "truncated, damaged, or not an image": 1,
        "an empty row": 1,
        "its image is missing": 1,
    }


def test_prepare_chexpert_refuses_wrong_tables(rows, tmp_path):
    rows["train"].append(rows["train"][0])
    source = write(tmp_path / "source", rows)
    with pytest.raises(ValueError, match="^train.csv, row 8: the 'Path' of row 2 once more$"):
        prepare(source, tmp_path / "out")
    rows["train"][-1] = row(image_path(9), Edema="yes")
    write(source, rows)
    with pytest.raises(ValueError, match="^train.csv, row 8: 'Edema' is not 1.0, 0.0, -1.0"):
        prepare(source, tmp_path / "out")
    text = (source / "train.csv").read_text()
    (source / "train.csv").write_text(text.replace("Frontal/Lateral", "View", 1))
    with pytest.raises(ValueError, match="train.csv: no column 'Frontal/Lateral'"):
        prepare(source, tmp_path / "out")
    (source / "valid.csv").unlink()
    (source / "train.csv").unlink()
    with pytest.raises(FileNotFoundError, match="no table train.csv or train.csv.gz in"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prepare_chexpert_refuses_a_patient_in_both_tables(rows, tmp_path):
    rows["valid"].append(row(image_path(1, part="valid"), Edema="1.0"))
    with pytest.raises(ValueError, match="of 1 patients are in more than one split"):
        prepare(write(tmp_path / "source", rows), tmp_path / "out")
