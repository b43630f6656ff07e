"""Folders of the shape of MIMIC-CXR-JPG, with made-up content."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.findings import CHEXPERT_LABELS
from data_prep.identifiers import scan
from data_prep.mimic_cxr import main, prepare_mimic_cxr
from medsign_lite.data import read_manifest
from medsign_lite.images import load_image
from tests.source_folders import noise, save, truncate, words_written, write_table

SPLIT = "mimic-cxr-2.0.0-split.csv"
METADATA = "mimic-cxr-2.0.0-metadata.csv"
CHEXPERT = "mimic-cxr-2.0.0-chexpert.csv"
LABELS = tuple(reversed(CHEXPERT_LABELS))  # MIMIC's order is not CheXpert's


class Mimic:
    """Rows and files of a source folder, before they are written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.split: list[dict] = []
        self.metadata: list[dict] = []
        self.chexpert: list[dict] = []

    def study(self, number: int, text: str | None, *, split="train", views=("PA",), **labels):
        """One study of a patient of its own; returns the images' ids."""
        subject, study, names = f"1000{number:04d}", f"5000{number:04d}", []
        below = self.folder / "files" / "p10" / f"p{subject}"
        for view, position in enumerate(views):
            names.append("-".join([f"{number:08x}", *[f"{view:08x}"] * 4]))
            save(below / f"s{study}" / f"{names[-1]}.jpg", noise(48, 40, seed=number))
            ids = {"dicom_id": names[-1], "study_id": study, "subject_id": subject}
            self.split.append(ids | {"split": split})
            self.metadata.append(
                ids
                | {"PerformedProcedureStepDescription": "CHEST", "ViewPosition": position,
                   "Rows": 48, "Columns": 40, "StudyDate": 21800506, "StudyTime": 213014.531}
            )  # fmt: skip
        if text is not None:
            (below / f"s{study}.txt").write_text(f" FINAL REPORT\n {text}\n", encoding="utf-8")
        cells = {label: "" for label in LABELS} | {
            n.replace("_", " "): v for n, v in labels.items()
        }
        self.chexpert.append({"subject_id": subject, "study_id": study} | cells)
        return names

    def write(self, ending: str = "") -> Path:
        for name in ("split", "metadata", "chexpert"):
            write_table(self.folder / f"mimic-cxr-2.0.0-{name}.csv{ending}", getattr(self, name))
        return self.folder


@pytest.fixture
def mimic(tmp_path: Path) -> Mimic:
    """Four studies for training, of which two say the same, one for validation, two for tests."""
    folder = Mimic(tmp_path / "source")
    folder.study(
        1, "FINDINGS: Long.\n \n IMPRESSION:  Small right effusion.\n Mild EDEMA.",
        Pleural_Effusion="1.0", Edema="1.0", Pneumonia="-1.0", Pneumothorax="0.0",
    )  # fmt: skip
    folder.study(2, "CONCLUSION: No acute process.", No_Finding="1.0")
    folder.study(3, "IMPRESSON: No  acute\n process.", No_Finding="1.0")
    folder.study(4, "INDICATION: Cough.\n \n Atelectasis, and more atelectasis.", Atelectasis="1.0")
    folder.study(5, "IMPRESSION: Pneumonia.", split="validate", Pneumonia="1.0")
    folder.study(6, "IMPRESSION: No acute process.", split="test")
    folder.study(7, "IMPRESSION: Cardiomegaly.", split="test", Cardiomegaly="1.0")
    return folder


def prepare(source: Path, out: Path, **options):
    return prepare_mimic_cxr(source, out, **({"size": 32, "progress": False} | options))


@pytest.mark.parametrize("ending", ["", ".gz"], ids=["csv", "csv.gz"])
def test_prepare_mimic_cxr_worked_by_hand(mimic, tmp_path, ending):
    path, summary = prepare(mimic.write(ending), tmp_path / "out")
    records = read_manifest(path)
    found = {(r.split, r.report): dict(zip(r.findings, r.words, strict=True)) for r in records}
    assert found == {
        ("train", "Small right effusion. Mild EDEMA."): {"edema": "EDEMA", "effusion": "effusion"},
        ("train", "No acute process."): {},
        ("train", "Atelectasis, and more atelectasis."): {"atelectasis": ""},  # which of the two?
        ("test", "No acute process."): {},  # duplicates are those of one split
        ("test", "Cardiomegaly."): {"cardiomegaly": "Cardiomegaly"},
    }
    assert summary.dropped == {"the impression of another study of its split": 1}
    assert summary.remarks == [
        "6000 train images were asked for, 3 are there",
        "1903 test images were asked for, 2 are there",
    ]
    (record,) = [r for r in records if r.report.startswith("Small")]
    expected = noise(48, 40, seed=1)[4:44].mean() / 255
    assert float(load_image(record.image).mean()) == pytest.approx(expected, abs=0.02)  # a JPEG


def test_prepare_mimic_cxr_writes_nothing_that_identifies(mimic, tmp_path, capsys):
    main(
        f"--source {mimic.write()} --out {tmp_path / 'out'} --size 32 --validation 5 "
        "--train 2".split()
    )
    ids = {row[name] for row in mimic.split for name in ("dicom_id", "study_id", "subject_id")}
    dates = ["2180", "213014"]
    assert scan([mimic.folder]) and not scan([tmp_path / "out"])
    assert not words_written(tmp_path / "out", [*ids, *dates])
    printed = capsys.readouterr()
    assert "kept 5 (2 train, 1 validation, 2 test)" in printed.out
    assert not any(name in printed.out + printed.err for name in [*ids, *dates])


def test_prepare_mimic_cxr_takes_one_frontal_image_of_a_study(mimic, tmp_path):
    mimic.study(8, "IMPRESSION: Eight.", views=("LATERAL", "AP", "PA", "PA", ""))
    mimic.study(9, "IMPRESSION: Nine.", views=("LL",))
    _, summary = prepare(mimic.write(), tmp_path / "out")
    assert summary.kept["train"] == 4
    assert summary.dropped["no frontal view"] == 3
    assert summary.dropped["another view of its study is taken"] == 2


def test_prepare_mimic_cxr_draws_by_the_seed_and_again_the_same(tmp_path):
    mimic = Mimic(tmp_path / "source")
    for number in range(12):
        mimic.study(number, f"IMPRESSION: Number {number}.")
    drawn = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        path, summary = prepare(mimic.write(), tmp_path / name, train=5, seed=seed)
        assert summary.kept == {"train": 5}
        drawn[name] = path.read_text()
    assert drawn["a"] == drawn["b"] != drawn["c"]


def test_prepare_mimic_cxr_drops_reports_that_say_nothing(mimic, tmp_path):
    mimic.study(8, None)
    mimic.study(9, "FINDINGS: Only findings.")
    mimic.study(10, "COMPARISON: None.")
    _, summary = prepare(mimic.write(), tmp_path / "out")
    assert summary.kept.total() == 5
    assert summary.dropped["its report is missing"] == 1
    assert summary.dropped["its report has no impression"] == 2


def test_prepare_mimic_cxr_finds_reports_in_a_folder_of_their_own(mimic, tmp_path):
    source = mimic.write()
    moved = tmp_path / "mimic-cxr-reports"
    for path in list(source.rglob("*.txt")):
        target = moved / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    with pytest.raises(ValueError, match="(?s)no image to convert in .* 6: its report is missing"):
        prepare(source, tmp_path / "out")
    assert prepare(source, tmp_path / "a", reports=moved)[1].kept.total() == 5
    assert prepare(source, tmp_path / "b", reports=moved / "files")[1].kept.total() == 5
    with pytest.raises(FileNotFoundError, match="no folder of reports at"):
        prepare(source, tmp_path / "c", reports=tmp_path / "absent")


def test_prepare_mimic_cxr_drops_unusable_images_and_says_why(mimic, tmp_path):
    (first,), (second,), (third,) = (
        mimic.study(number, f"IMPRESSION: {number}.") for number in (8, 9, 10)
    )
    by_id = {path.stem: path for path in mimic.folder.rglob("*.jpg")}
    truncate(by_id[first])
    save(by_id[second], noise(40, 48))
    by_id[third].unlink()
    path, summary = prepare(mimic.write(), tmp_path / "out")
    assert len(read_manifest(path)) == summary.kept.total() == 5
    del summary.dropped["the impression of another study of its split"]
    assert summary.dropped == {
        "truncated, damaged, or not an image": 1,
        "of another size than its table says": 1,
        "its image is missing": 1,
    }


def test_prepare_mimic_cxr_drops_rows_it_cannot_use(mimic, tmp_path):
    mimic.study(8, "IMPRESSION: Eight.")
    mimic.metadata[-1]["dicom_id"] = mimic.split[-1]["dicom_id"] = "../../secret"
    mimic.study(9, "IMPRESSION: Nine.")
    del mimic.split[-1]
    mimic.metadata.insert(3, dict.fromkeys(mimic.metadata[0], ""))
    _, summary = prepare(mimic.write(), tmp_path / "out")
    assert summary.kept.total() == 5
    assert summary.dropped["its row names a path outside of the source"] == 1
    assert summary.dropped["in no row of the split table"] == 1
    assert summary.dropped["an empty row"] == 1


def test_prepare_mimic_cxr_works_without_labels(mimic, tmp_path):
    (mimic.write() / CHEXPERT).unlink()
    path, summary = prepare(mimic.folder, tmp_path / "out")
    assert summary.kept.total() == 5
    assert not any(record.findings for record in read_manifest(path))


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("metadata", lambda rows: rows[1].update(Rows="tall"), r"row 3: 'Rows' is no number"),
        (
            "metadata",
            lambda rows: rows.append(rows[0]),
            r"row 9: the 'dicom_id' of row 2 once more",
        ),
        ("split", lambda rows: rows.append(rows[0]), r"row 9: the 'dicom_id' of row 2 once more"),
        ("split", lambda rows: rows[4].update(split="exam"), r"row 6: 'split' is not one of"),
        ("chexpert", lambda rows: rows.append(rows[0]), r"row 9: the 'study_id' of row 2"),
        ("chexpert", lambda rows: rows[0].update(Edema="2.0"), r"row 2: 'Edema' is not 1.0, 0.0"),
    ],
    ids=["size", "metadata twice", "split twice", "split", "labels twice", "label"],
)
def test_prepare_mimic_cxr_refuses_a_wrong_table(mimic, tmp_path, table, change, message):
    change(getattr(mimic, table))
    with pytest.raises(ValueError, match=f"^mimic-cxr-2.0.0-{table}.csv, {message}"):
        prepare(mimic.write(), tmp_path / "out", validation=None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "old", "new"),
    [
        (METADATA, "ViewPosition", "View Position"),
        (SPLIT, "dicom_id", "DICOM ID"),
        (CHEXPERT, "Pleural Effusion", "Pleural_Effusion"),
    ],
)
def test_prepare_mimic_cxr_names_a_renamed_column(mimic, tmp_path, table, old, new):
    path = mimic.write() / table
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=f"{table}: no column '{old}' .*is it '{new}'"):
        prepare(mimic.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prepare_mimic_cxr_refuses_a_patient_in_two_splits(mimic, tmp_path):
    mimic.metadata[6]["subject_id"] = mimic.metadata[0]["subject_id"]
    path = mimic.folder / "files" / "p10"
    (path / "p10000007" / "s50000007.txt").rename(path / "p10000001" / "s50000007.txt")
    with pytest.raises(ValueError, match="of 1 patients are in more than one split"):
        prepare(mimic.write(), tmp_path / "out")


@pytest.mark.parametrize("name", [SPLIT, METADATA])
def test_prepare_mimic_cxr_needs_its_tables(mimic, tmp_path, name):
    (mimic.write() / name).unlink()
    pattern = name.replace("2.0.0", r"2\*")
    with pytest.raises(FileNotFoundError, match=f"no table {pattern} or {pattern}.gz in"):
        prepare(mimic.folder, tmp_path / "out")


def test_prepare_mimic_cxr_goes_on_without_converting_again(mimic, tmp_path):
    path, _ = prepare(mimic.write(), tmp_path / "out")
    manifest = path.read_bytes()
    kept, lost = sorted((tmp_path / "out" / "images").iterdir())[:2]
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    path.unlink()
    prepare(mimic.folder, tmp_path / "out")
    assert path.read_bytes() == manifest and lost.is_file()
    assert kept.stat().st_mtime_ns == stamp
    assert np.isclose(float(load_image(lost).mean()), 0.5, atol=0.05)
