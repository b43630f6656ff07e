"""Folders of the shape of both distributions of OIA-ODIR, with made-up content."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.identifiers import scan
from data_prep.oia_odir import keywords, main, named_findings, prepare_oia_odir
from medsign_lite.data import FUNDUS_FINDINGS, read_manifest
from medsign_lite.images import load_image
from tests.source_folders import noise, save, truncate, words_written, write_table

openpyxl = pytest.importorskip("openpyxl", reason="the annotations are spreadsheets")
HEADER = ["ID", "Patient Age", "Patient Sex", "Left-Fundus", "Right-Fundus",
          "Left-Diagnostic Keywords", "Right-Diagnostic Keywords", *"NDGCAHMO"]  # fmt: skip
TABLE = "ODIR-5K_Training_Annotations(Updated)_V2.xlsx"


def line(number: int | str, left: str, right: str) -> list:
    images = [f"{number}_left.jpg", f"{number}_right.jpg"]
    return [number, 69, "Female", *images, left, right, *[0] * 8]


def write_images(folder: Path, lines: list[list]) -> None:
    for number, cells in enumerate(lines):
        for eye in cells[3:5]:
            if eye and "/" not in eye:
                save(folder / eye, noise(40, 52, 3, seed=number))


LINES = [
    line(0, "drusen\uff0c macular  epiretinal membrane", "normal fundus"),
    line(1, "moderate non proliferative retinopathy,laser-spot", "normal fundus"),
    line(
        3, "Moderate nonproliferative retinopathy\uff0claser spot ", "lens dust\uff0cnormal fundus"
    ),
]


@pytest.fixture
def odir(tmp_path: Path) -> Path:
    """The distribution of one table, with the images in a folder beside it."""
    folder = tmp_path / "source"
    write_images(folder / "ODIR-5K_Training_Dataset", LINES)
    write_table(folder / TABLE, [HEADER, *LINES])
    return folder


def prepare(source: Path, out: Path, **options):
    return prepare_oia_odir(source, out, **({"size": 32, "progress": False} | options))


def test_prepare_oia_odir_worked_by_hand(odir, tmp_path):
    path, summary = prepare(odir, tmp_path / "out", train=6, test=0)
    records = read_manifest(path)
    assert sorted((r.report, r.findings, r.words) for r in records) == [
        ("drusen, macular epiretinal membrane", *[("drusen", "macular epiretinal membrane")] * 2),
        ("lens dust, normal fundus", (), ()),
        *[("moderate non proliferative retinopathy, laser spot",
           *[("moderate non proliferative retinopathy", "laser spot")] * 2)] * 2,
        *[("normal fundus", (), ())] * 2,
    ]  # fmt: skip
    assert summary.kept == {"train": 6} and not summary.dropped
    assert summary.remarks == ["290 distinct reports were asked for, 4 are there"]
    image = load_image(records[0].image)
    assert image.shape == (3, 32, 32) and not np.array_equal(image[0], image[1])  # colour
    assert {record.modality for record in records} == {"fundus"}


@pytest.mark.parametrize("space", [" ", "_"], ids=["spaces", "underscores"])
def test_prepare_oia_odir_reads_the_three_sets(tmp_path, space):
    source = tmp_path / "source"
    sets = {"Training Set": "training", "Off-site Test Set": "off-site test",
            "On-site Test Set": "on-site test"}  # fmt: skip
    for cells, (folder, name) in zip(LINES, sets.items(), strict=True):
        place = source / folder.replace(" ", space)
        write_images(place / "Images", [cells])
        for language in ("English", "Chinese"):
            table = f"{name} annotation ({language}).xlsx".replace(" ", space)
            write_table(place / "Annotation" / table, [HEADER, cells])
    path, summary = prepare(source, tmp_path / "out")
    assert summary.kept.total() == len(read_manifest(path)) == 6


def test_prepare_oia_odir_splits_patients_in_the_proportion_asked(tmp_path):
    lines = [line(number, f"report {number % 4}", f"report {number % 4}") for number in range(20)]
    source = tmp_path / "source"
    write_images(source / "images", lines)
    write_table(source / TABLE, [HEADER, *lines])
    path, summary = prepare(source, tmp_path / "out", reports=3, train=18, test=12)
    assert summary.kept == {"train": 18, "test": 12}
    assert summary.dropped["its report is not among the 3 most frequent"] == 10
    assert {r.report for r in read_manifest(path)} == {"report 0", "report 1", "report 2"}
    splits: dict[bytes, set] = {}
    for record in read_manifest(path):  # both eyes of a patient have the same pixels here
        splits.setdefault(record.image.read_bytes(), set()).add(record.split)
    assert len(splits) == 15 and all(len(found) == 1 for found in splits.values())


def test_prepare_oia_odir_writes_nothing_that_identifies(odir, tmp_path, capsys):
    main(f"--source {odir} --out {tmp_path / 'out'} --size 32 --reports 3".split())
    printed = "".join(capsys.readouterr())
    assert "kept 5" in printed and "3361 train images were asked for" in printed
    secret = ["0_left", "1_right", "Female", "ODIR", "69,"]
    assert scan([odir]) and not scan([tmp_path / "out"])
    assert not words_written(tmp_path / "out", secret)
    assert not any(word in printed for word in secret)


def test_prepare_oia_odir_drops_what_it_cannot_use(odir, tmp_path):
    lines = [
        *LINES,
        [None] * len(HEADER),
        line(5, "no fundus image", "anterior segment image"),
        line(6, "\uff0c ,", "normal fundus"),
        ["", *line(7, "normal fundus", "normal fundus")[1:]],
        line(8, "normal fundus", "normal fundus"),
        [10, *LINES[0][1:]],
        line(9, "normal fundus", "normal fundus"),
    ]
    lines[-1][3], lines[-1][4] = None, "../../secret.jpg"
    images = odir / "ODIR-5K_Training_Dataset"
    write_images(images, [cells for cells in lines if cells[3]])
    truncate(images / "8_left.jpg")
    (images / "8_right.jpg").unlink()
    write_table(odir / TABLE, [HEADER, *lines])
    _, summary = prepare(odir, tmp_path / "out", train=100, test=0)
    assert summary.kept == {"train": 7}
    assert summary.dropped == {
        "an empty row": 1,
        "no fundus, by its keywords": 2,
        "an eye without keywords": 1,
        "its row has no ID": 2,
        "truncated, damaged, or not an image": 1,
        "its row names no image of the source": 1,
        "an eye without an image": 1,
        "named by an earlier row, too": 2,
        "its row names a path outside of the source": 1,
    }


def test_prepare_oia_odir_refuses_wrong_tables(odir, tmp_path):
    write_table(odir / TABLE, [HEADER, *LINES, LINES[0]])
    with pytest.raises(ValueError, match="row 5: the 'ID' of row 2 once more$"):
        prepare(odir, tmp_path / "out")
    write_table(odir / TABLE, [[h.replace("Keywords", "Keyword") for h in HEADER], *LINES])
    with pytest.raises(ValueError, match="no column 'Left-Diagnostic Keywords' .*is it 'Left-Dia"):
        prepare(odir, tmp_path / "out")
    write_table(odir / TABLE, [HEADER, *LINES])
    book = openpyxl.load_workbook(odir / TABLE)
    book.active.merge_cells("A2:A3")
    book.save(odir / TABLE)
    with pytest.raises(ValueError, match="cells A2:A3 are merged"):
        prepare(odir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prepare_oia_odir_wants_one_table_for_a_set(odir, tmp_path):
    write_table(odir / "ODIR-5K_Training_Annotations.xlsx", [HEADER, *LINES])
    with pytest.raises(ValueError, match="several tables of annotations in one set"):
        prepare(odir, tmp_path / "out")
    for path in odir.glob("*.xlsx"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no spreadsheet of annotations \(\*annotation"):
        prepare(odir, tmp_path / "out")


def test_prepare_oia_odir_refuses_counts_without_a_proportion(odir, tmp_path):
    with pytest.raises(ValueError, match="numbers of images with a positive sum"):
        prepare(odir, tmp_path / "out", train=0, test=0)
    with pytest.raises(ValueError, match="at least one report, got 0"):
        prepare(odir, tmp_path / "out", reports=0)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("mild nonproliferative retinopathy", ("mild non proliferative retinopathy",)),
        ("mild Non-Proliferative retinopathy", ("mild non proliferative retinopathy",)),
        ("age\u2010related macular degeneration", ("age related macular degeneration",)),
        (" drusen \uff0c,\u3001drusen;cataract\u00a0", ("drusen", "cataract")),
        ("", ()),
    ],
    ids=["one word", "hyphen", "other hyphen", "separators", "empty"],
)
def test_keywords_have_one_spelling(cell, expected):
    assert keywords(cell) == expected


@pytest.mark.parametrize(
    ("keyword", "finding", "word"),
    [
        ("microaneurysm", "microaneurysms", "microaneurysm"),
        ("intraretinal hemorrhage", "haemorrhages", "hemorrhage"),
        ("retinal haemorrhages", "haemorrhages", "haemorrhages"),
        ("vitreous hemorrhages", "vitreous hemorrhages", "vitreous hemorrhages"),
        ("hard exudates", "exudates", "exudates"),
        ("drusen", "drusen", "drusen"),
        ("large optic cup", "cupping", "optic cup"),
        ("glaucoma", "glaucoma", "glaucoma"),
    ],
)
def test_named_findings_takes_the_projects_names(keyword, finding, word):
    assert named_findings([keyword, "lens dust"], f"{keyword}, lens dust") == {finding: word}
    assert (finding in FUNDUS_FINDINGS) == (keyword not in ("glaucoma", "vitreous hemorrhages"))


def test_named_findings_names_no_word_that_a_manifest_would_split(odir, tmp_path):
    assert named_findings(["a|b", "drusen"], "a|b, drusen") == {"a b": "", "drusen": "drusen"}
    write_table(odir / TABLE, [HEADER, line(0, "wet|dry lesion", "normal fundus")])
    path, _ = prepare(odir, tmp_path / "out", train=2, test=0)
    records = {record.report: record for record in read_manifest(path)}
    assert records["wet|dry lesion"].findings == ("wet dry lesion",)
    assert records["wet|dry lesion"].words == ("",)


def test_named_findings_leaves_open_which_of_two_is_meant():
    report = "macular epiretinal membrane, epiretinal membrane"
    assert named_findings(report.split(", "), report)["epiretinal membrane"] == ""
