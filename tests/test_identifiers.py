"""Identifiers of the public data sets are seen, other numbers are not, and we publish none."""

import json
import shutil
from pathlib import Path

import pytest

from data_prep.identifiers import identifiers_in, main, scan

IMAGE = "-".join(["02aa804e", "bde0afdd", "112c0b34", "7bc16630", "4e384014"])
IDENTIFIERS = {
    "a MIMIC-CXR image": [IMAGE, f"see {IMAGE}.jpg"],
    "a MIMIC-CXR patient": ["files/p10/p10000032/", "p10000032"],
    "a MIMIC-CXR study": ["s50414267.txt", "/s50414267/"],
    "a numbered patient or study": ["subject_id: 10000032", '"study_id": 7', "Patient ID = 12"],
    "a CheXpert patient": ["train/patient00001/study1", "patient64541"],
    "a ChestX-ray14 image": ["00000001_000.png", "'00000061_012'"],
    "an ODIR image": ["0_left.jpg", "images/4784_right.jpg"],
}


@pytest.mark.parametrize(
    ("form", "text"), [(form, text) for form, texts in IDENTIFIERS.items() for text in texts]
)
def test_identifiers_in_sees_each_form(form, text):
    assert identifiers_in(f"first line\nand {text} so") == [(2, form)]


@pytest.mark.parametrize(
    "text",
    [
        "chest-000123", "0.10000032", "seed 3000000", "step1_left", "word_right", "patient 00001",
        "3f2a9c1d-1234-5678-9abc-def012345678", "a patient's study", "20250101_120000.log",
        "top_left 3 and 12_lefts", "sha256 0123456789abcdef", "subject to change: 7",
    ],
)  # fmt: skip
def test_identifiers_in_leaves_other_text_alone(text):
    assert identifiers_in(text) == []


def notebook(*outputs: dict) -> str:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Title\n", "and text"]},
        {"cell_type": "code", "metadata": {}, "source": [], "outputs": list(outputs)},
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.mark.parametrize(
    "output",
    [
        {"output_type": "stream", "name": "stdout", "text": ["read\n", "00000001_000.png\n"]},
        {"output_type": "error", "evalue": "no 00000001_000.png", "traceback": []},
        {"output_type": "display_data", "data": {"text/html": "<td>00000001_000.png</td>"}},
        {"output_type": "display_data", "data": {"image/svg+xml": ["<text>00000001_000</text>"]}},
        {"output_type": "display_data", "data": {}, "metadata": {"file": "00000001_000.png"}},
    ],
    ids=["stream", "error", "table", "drawing", "metadata"],
)
def test_scan_reads_every_output_of_a_notebook(tmp_path, output):
    path = tmp_path / "a.ipynb"
    path.write_text(notebook({"output_type": "stream", "text": "fine"}, output))
    assert scan([path]) == [f"{path.as_posix()}, cell 2: a ChestX-ray14 image"]


def test_scan_reads_a_notebooks_metadata(tmp_path):
    document = json.loads(notebook())
    document["metadata"]["papermill"] = {"parameters": {"data": "runs/p10000032"}}
    (tmp_path / "a.ipynb").write_text(json.dumps(document))
    assert [found.split(", ")[1] for found in scan([tmp_path])] == ["metadata: a MIMIC-CXR patient"]


def test_scan_passes_over_pictures(tmp_path):
    data = {"output_type": "display_data", "data": {"image/png": "iVBOR/p10000032/"}}
    (tmp_path / "a.ipynb").write_text(notebook(data))
    assert scan([tmp_path]) == []


def test_scan_names_file_and_line_and_never_the_patient(tmp_path, capsys):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"image": "patient00001/view1"}\n')
    (tmp_path / "broken.ipynb").write_text('{"text": "p10000032"')
    (tmp_path / "00000001_000.png").write_bytes(b"")
    (tmp_path / "00000001_001.csv").write_text("subject_id,10000032\n")
    (tmp_path / "weights.bin").write_bytes(b"p10000032")
    folder = tmp_path.as_posix()
    expected = [
        f"a name in {folder}: a ChestX-ray14 image",
        f"a name in {folder}: a ChestX-ray14 image",
        f"{folder}/..., line 1: a numbered patient or study",
        f"{folder}/broken.ipynb, line 1: a MIMIC-CXR patient",
        f"{folder}/log.jsonl, line 2: a CheXpert patient",
    ]
    assert scan([tmp_path]) == expected
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert printed.splitlines() == [*expected, "5 identifiers found"]
    for name in ("00000001", "patient00001", "p10000032", "10000032"):
        assert name not in printed


def test_scan_hides_every_part_of_a_path_that_is_a_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nested = Path("files", "p10", "p10000032")
    nested.mkdir(parents=True)
    (nested / "s50414267.txt").write_text("EXAMINATION\nsubject_id: 7\n")
    (nested / "log.txt").write_text("of patient00001\n")
    in_nested = [
        "files/p10/.../log.txt, line 1: a CheXpert patient",
        "a name in files/p10/...: a MIMIC-CXR study",
        "files/p10/.../..., line 2: a numbered patient or study",
    ]
    expected = ["a name in files/p10: a MIMIC-CXR patient", *in_nested]
    assert scan(["files"]) == expected
    # The same for a place below the name, and each name once for places that share it.
    assert scan([nested]) == expected
    assert scan([nested / "log.txt", nested / "s50414267.txt"]) == expected
    assert main([str(nested / "log.txt")]) == 1
    with pytest.raises(SystemExit, match="2"):
        main([str(nested / "s50414268.txt")])
    printed = "".join(capsys.readouterr())
    assert "2 identifiers found" in printed and "no file or folder at files/p10/.../..." in printed
    assert not any(name in printed for name in ("p10000032", "s5041426", "patient00001"))


def test_main_says_that_nothing_is_there(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "0 identifiers found\n"
    with pytest.raises(FileNotFoundError, match="no file or folder at .*absent"):
        scan([tmp_path / "absent"])
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "absent")])


@pytest.mark.parametrize("name", ["notebooks", "results"])
def test_scan_finds_nothing_in_what_is_committed(root, name):
    assert scan([root / name]) == []


def test_scan_would_find_a_name_among_what_is_committed(root, tmp_path):
    source: Path = sorted((root / "notebooks").glob("*.ipynb"))[0]
    path = tmp_path / "copy.ipynb"
    shutil.copy(source, path)
    document = json.loads(path.read_text())
    cell = next(c for c in document["cells"] if c.get("outputs"))
    cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": "0_left.jpg"})
    path.write_text(json.dumps(document))
    assert [sentence.split(": ")[1] for sentence in scan([path])] == ["an ODIR image"]
