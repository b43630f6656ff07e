"""Folders of the shape of ChestX-ray14, with made-up content, and the real radiographs."""

import csv
from pathlib import Path

import pytest

from data_prep.identifiers import scan
from data_prep.nih_cxr14 import OFFICIAL, main, prepare_nih_cxr14
from medsign_lite.data import load_mask, read_manifest
from medsign_lite.images import load_image
from tests.source_folders import noise, save, truncate, words_written, write_table

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "cxr"
TABLE, BOXES = "Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"
HEADER = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age",
          "Patient Gender", "View Position", "OriginalImage[Width", "Height]",
          "OriginalImagePixelSpacing[x", "y]", ""]  # fmt: skip
BOX_HEADER = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", ""]


class Nih:
    """Lines and files of a source folder; images are 64 x 64 and not 1024 x 1024."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[list] = []
        self.boxes: list[list] = []
        self.lists = {"train_val_list.txt": [], "test_list.txt": []}

    def image(self, patient: int, number: int, labels: str, *, part="train_val") -> str:
        name = f"{patient:08d}_{number:03d}.png"
        self.lines.append(
            [name, labels, number, patient, 58, "M", "PA", 2682, 2749, 0.143, 0.143, ""]
        )
        if part:
            self.lists[f"{part}_list.txt"].append(name)
        place = self.folder / f"images_{1 + patient % 2:03d}" / "images"
        save(place / name, noise(64, 64, seed=patient * 10 + number))
        return name

    def write(self) -> Path:
        write_table(self.folder / TABLE, [HEADER, *self.lines])
        write_table(self.folder / BOXES, [BOX_HEADER, *self.boxes])
        for name, lines in self.lists.items():
            (self.folder / name).write_text("\n".join(lines) + "\n")
        return self.folder


@pytest.fixture
def nih(tmp_path: Path) -> Nih:
    folder = Nih(tmp_path / "source")
    first = folder.image(1, 0, "Cardiomegaly|Effusion|Infiltration")
    folder.image(1, 1, "No Finding")
    folder.image(2, 0, "Pleural_Thickening|Mass")
    folder.image(3, 0, "Pneumonia", part="test")
    folder.boxes += [
        [first, "Effusion", "512.0", "0", "512", "256.0", "", "", ""],
        [first, "Infiltrate", "0", "768", "256", "256", "", "", ""],
        [first, "Nodule", "0", "0", "10", "10", "", "", ""],  # the labels name no nodule
    ]
    return folder


def prepare(source: Path, out: Path, **options):
    options = {"size": 32, "side": 64, "progress": False, "validation_share": 0.0} | options
    return prepare_nih_cxr14(source, out, **options)


def test_prepare_nih_cxr14_worked_by_hand(nih, tmp_path):
    path, summary = prepare(nih.write(), tmp_path / "out")
    records = {record.report: record for record in read_manifest(path)}
    assert {report: (r.split, r.findings, r.words) for report, r in records.items()} == {
        "Chest radiograph with cardiomegaly, pleural effusion and infiltration.": (
            "train", *[("cardiomegaly", "effusion", "infiltration")] * 2),
        "Normal chest radiograph.": ("train", (), ()),
        "Chest radiograph with pleural thickening and mass.": (
            "train", *[("pleural thickening", "mass")] * 2),
        "Chest radiograph with pneumonia.": ("test", ("pneumonia",), ("pneumonia",)),
    }  # fmt: skip
    assert not summary.dropped
    assert summary.remarks == ["1 boxes left out: their image has no such label"]
    # Of 1024 px, the effusion's box is the right half of the top quarter: 16 x 8 of 32 x 32.
    masks = records["Chest radiograph with cardiomegaly, pleural effusion and infiltration."].masks
    assert masks[0] is None
    effusion, infiltration = load_mask(masks[1]), load_mask(masks[2])
    assert effusion[:8, 16:].all() and effusion.sum() == 16 * 8
    assert infiltration[24:, :8].all() and infiltration.sum() == 8 * 8


def test_prepare_nih_cxr14_holds_patients_of_the_training_list_out(tmp_path):
    nih = Nih(tmp_path / "source")
    for patient in range(10):
        for number in range(2):
            nih.image(patient, number, "Mass", part="test" if patient == 9 else "train_val")
    _, summary = prepare(nih.write(), tmp_path / "out", validation_share=1 / 3)
    assert summary.kept == {"train": 12, "validation": 6, "test": 2}
    _, summary = prepare(nih.folder, tmp_path / "few", validation_share=1 / 3, train=5, test=1)
    assert summary.kept == {"train": 5, "validation": 6, "test": 1}


def test_prepare_nih_cxr14_writes_nothing_that_identifies(nih, tmp_path, capsys):
    source, out = nih.write(), tmp_path / "out"
    main(f"--source {source} --out {out} --size 32 --side 64 --validation-share 0".split())
    printed = "".join(capsys.readouterr())
    assert "kept 4 (3 train, 0 validation, 1 test), dropped 0" in printed
    secret = [line[0].removesuffix(".png") for line in nih.lines] + ["images_001", "2682"]
    assert scan([source]) and not scan([tmp_path / "out"])
    assert not words_written(out, secret)
    assert not any(word in printed for word in secret)


def test_prepare_nih_cxr14_drops_what_it_cannot_use(nih, tmp_path):
    cut, large, gone = (nih.image(4, number, "Mass") for number in range(3))
    nih.image(5, 0, "Mass", part="")
    doubled = nih.image(6, 0, "Mass")
    nih.image(8, 0, "Mass")
    nih.lines[-1][3] = ""  # no patient
    nih.lines.append([""] * 3 + [7] + [""] * 8)  # no image
    nih.lines.append(["../secret.png", *nih.lines[0][1:]])
    nih.lists["test_list.txt"].append("../secret.png")
    save(nih.folder / "copies" / doubled, noise(64, 64))
    images = nih.folder / "images_001" / "images"
    truncate(images / cut)
    save(images / large, noise(80, 80))
    (images / gone).unlink()
    _, summary = prepare(nih.write(), tmp_path / "out")
    assert summary.kept.total() == 4
    assert summary.dropped == {
        "truncated, damaged, or not an image": 1,
        "of another size than its table says": 1,
        "its row names no image of the source": 1,
        "in neither of the two lists": 1,
        "its row names several images: the name alone is not unique": 1,
        "an empty row": 1,
        "its row names no patient": 1,
        "its row names a path outside of the source": 1,
    }


def test_prepare_nih_cxr14_refuses_images_of_another_size(nih, tmp_path):
    with pytest.raises(ValueError, match="(?s)could be used: .* 4: of another size than its table"):
        prepare(nih.write(), tmp_path / "out", side=None)  # 1024, as distributed
    assert OFFICIAL.side == 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda nih: nih.lines.append(nih.lines[0]), f"^{TABLE}, row 6: the 'Image Index'"),
        (lambda nih: nih.lines[1].__setitem__(1, "Mass|"), f"^{TABLE}, row 3: 'Finding Labels'"),
        (lambda nih: nih.boxes[1].__setitem__(4, "wide"), f"^{BOXES}, row 3: 'w' is no number"),
        (lambda nih: nih.lists["test_list.txt"].append(nih.lines[0][0]),
         "^test_list.txt, line 2: the image is in both lists"),
        (lambda nih: nih.image(1, 5, "Mass", part="test"), "1 patients are in more than one split"),
    ],
    ids=["twice", "label", "box", "lists", "patient"],
)  # fmt: skip
def test_prepare_nih_cxr14_refuses_wrong_tables(nih, tmp_path, change, message):
    change(nih)
    with pytest.raises(ValueError, match=message):
        prepare(nih.write(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [(TABLE, "Finding Labels", "Findings Label"), (BOXES, "Bbox [x", "Bbox x")],
    ids=["labels", "boxes"],
)
def test_prepare_nih_cxr14_names_a_renamed_column(nih, tmp_path, name, old, new):
    path = nih.write() / name
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError) as caught:
        prepare(nih.folder, tmp_path / "out")
    assert str(caught.value) == f"{name}: no column {old!r} in its first row (is it {new!r}?)"


def test_prepare_nih_cxr14_needs_its_tables(nih, tmp_path):
    (nih.write() / "test_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no list test_list.txt in .* the other is there"):
        prepare(nih.folder, tmp_path / "out")
    (nih.folder / TABLE).unlink()
    with pytest.raises(FileNotFoundError, match="no table Data_Entry_2017.*csv or index.csv in"):
        prepare(nih.folder, tmp_path / "out")


def test_prepare_nih_cxr14_works_without_boxes(nih, tmp_path):
    (nih.write() / BOXES).unlink()
    path, summary = prepare(nih.folder, tmp_path / "out")
    assert summary.kept.total() == 4 and not summary.remarks
    assert not any(mask for record in read_manifest(path) for mask in record.masks)


@pytest.mark.skipif(not REAL.is_dir(), reason="no real radiographs beside this checkout")
def test_prepare_nih_cxr14_takes_real_radiographs(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    with (REAL / "boxes.csv").open() as first, (REAL / "index.csv").open() as second:
        boxes, rows = list(csv.DictReader(first)), list(csv.DictReader(second))
    boxed = {box["filename"] for box in boxes}
    chosen = [row for row in rows if row["filename"] in boxed] + rows[:6]
    for row in chosen:
        (source / row["filename"]).write_bytes((REAL / row["filename"]).read_bytes())
    write_table(source / "index.csv", chosen)
    write_table(source / "boxes.csv", boxes)
    path, summary = prepare(source, tmp_path / "out", size=128, side=None, validation_share=0.2)
    records = read_manifest(path)
    assert summary.remarks == ["no lists of a split: patients are split by the seed"]
    assert summary.kept.total() == len(records) == len(chosen) and set(summary.kept) == {
        "train", "validation", "test"}  # fmt: skip
    found = []
    for record in records:
        assert 0.05 < float(load_image(record.image).std()) < 0.5
        for finding, path in zip(record.findings, record.masks, strict=True):
            if path is not None:
                mask = load_mask(path)
                ends = [mask.any(dim=axis).nonzero()[i].item() for axis in (0, 1) for i in (0, -1)]
                left, right, top, bottom = (4 * end for end in ends)  # in pixels of 512
                found.append((finding, left, top, right + 4 - left, bottom + 4 - top))
    expected = [(box["finding"].lower(), *(float(box[name]) for name in "xywh")) for box in boxes]
    for (finding, *sides), (name, *true) in zip(sorted(found), sorted(expected), strict=True):
        assert finding == name and sides == pytest.approx(true, abs=6)
    assert not words_written(tmp_path / "out", [r["filename"].removesuffix(".png") for r in chosen])
