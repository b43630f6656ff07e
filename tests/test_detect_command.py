import csv

import numpy as np
import pytest
import torch
from grid_extractor import GridExtractor, grid_image
from PIL import Image

from medsign_lite.deployment import command_line, detect_command
from medsign_lite.deployment.detection_table import Row
from medsign_lite.deployment.keys import Key, Registry, write_registry
from medsign_lite.deployment.provenance import Model, Provenance, write_synthetic_png
from medsign_lite.images import save_image
from medsign_lite.messages import message_to_string, random_messages
from tests.dicom_files import write_dicom

OURS, THEIRS = (
    message_to_string(message)
    for message in random_messages(2, 48, generator=torch.Generator().manual_seed(0))
)


@pytest.fixture
def keys(tmp_path):
    both = (Key(id="ours", message=OURS), Key(id="theirs", message=THEIRS))
    return str(write_registry(tmp_path / "keys.json", Registry(bits=48, keys=both)))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with three readable images, and an extractor that reads their grid."""
    monkeypatch.setattr(detect_command, "load_extractor", lambda folder, device: GridExtractor())
    folder = tmp_path / "study"
    save_image(grid_image(OURS, wrong=2), folder / "a.png")
    deep = (grid_image(THEIRS)[0].numpy() * 4095).astype(np.uint16)
    Image.fromarray(deep).save(folder / "b.png")
    save_image(torch.rand(3, 48, 64), folder / "sub" / "c.png")
    return folder


def run(*arguments):
    return command_line.main(["detect", *map(str, arguments)])


def test_detect_prints_a_table(study, keys, capsys):
    assert run(study, "--keys", keys) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    cells = [line.split()[1:] for line in lines[:3]]
    assert cells[0] == ["matching", "p-value", "decision", "key"]
    assert cells[1][:3] + cells[1][4:] == ["46", "of", "48", "marked", "ours"]
    assert cells[2] == ["48", "of", "48", "7.1e-15", "marked", "theirs"]
    assert 7.1e-15 < float(cells[1][3]) < 1e-8
    assert lines[3].endswith("not marked") and "c.png" in lines[3]
    assert output.err == "images: 3; 2 marked, 1 not marked, 0 unreadable\n"
    assert OURS not in output.out + output.err


def test_detect_reads_dicom_and_jpeg(study, keys, tmp_path, capsys):
    pixels = (grid_image(OURS)[0].numpy() * 3000 + 500).astype(np.uint16)
    write_dicom(study / "d.dcm", pixels, PhotometricInterpretation="MONOCHROME2")
    write_dicom(study / "e.dcm", 4000 - pixels, PhotometricInterpretation="MONOCHROME1")
    Image.open(study / "a.png").save(study / "f.jpg")
    assert run(study / "d.dcm", study / "e.dcm", study / "f.jpg", "--keys", keys) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["ours"] * 3


def test_detect_shows_what_a_file_says_of_itself_beside_the_decision(study, keys, tmp_path, capsys):
    model = Model(name="m", weights={})
    about = Provenance(
        model=model, decoder=model, key="theirs", seed=1, steps=2, guidance=3.0, size=(48, 64)
    )
    write_synthetic_png(grid_image(OURS), study / "d.png", about)
    assert run(study / "a.png", study / "d.png", "--keys", keys) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith("marked      ours")  # the mark says so, whatever the file says
    assert lines[3:] == ["    its file says: synthetic, key theirs"]
    run(study / "a.png", study / "d.png", "--keys", keys, "--csv", tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(newline="") as file:
        claims = [row["claim"] for row in csv.DictReader(file)]
    assert claims == ["", "synthetic, key theirs"]


def test_detect_writes_csv(study, keys, tmp_path, capsys):
    assert run(study, "--keys", keys, "--csv", tmp_path / "found.csv") == 0
    assert capsys.readouterr().out == ""
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [
        str(study / name) for name in ("a.png", "b.png", "sub/c.png")
    ]
    assert [row["key"] for row in rows] == ["ours", "theirs", ""]
    assert [row["decision"] for row in rows] == ["marked", "marked", "not marked"]
    assert rows[0]["matching"] == "46" and float(rows[0]["p_value"]) < 1e-9


def test_detect_goes_on_after_unreadable_images_and_says_so(study, keys, capsys):
    (study / "a0.png").write_bytes((study / "a.png").read_bytes()[:-40])
    (study / "a1.png").write_bytes(b"")
    save_image(torch.rand(3, 31, 64), study / "a2.png")
    (study / "a3.dcm").write_bytes(b"DICM")
    (study / "notes.txt").touch()
    assert run(study, "--keys", keys) == 1
    output = capsys.readouterr()
    lines = dict(line.split(maxsplit=1) for line in output.out.splitlines())
    reasons = {name: lines[str(study / name)] for name in ("a0.png", "a1.png", "a2.png", "a3.dcm")}
    assert "unreadable: is truncated or damaged" in reasons["a0.png"]
    assert "unreadable: is empty (0 bytes)" in reasons["a1.png"]
    assert "unreadable: expected at least 32 pixels on each side" in reasons["a2.png"]
    assert "unreadable: is truncated, damaged, no DICOM" in reasons["a3.dcm"]
    assert lines[str(study / "b.png")].endswith("theirs")
    end = "images: 7; 2 marked, 1 not marked, 4 unreadable; 1 other files left out\n"
    assert output.err == end


def test_detect_prints_names_that_are_no_text(study, keys, tmp_path, capsys):
    odd = study / "\udcff.png"
    save_image(grid_image(OURS), odd)
    assert run(odd, "--keys", keys) == 0
    assert "\\udcff.png  48 of 48" in capsys.readouterr().out
    assert run(odd, "--keys", keys, "--csv", tmp_path / "found.csv") == 0
    assert "\\udcff.png,marked,ours,48" in (tmp_path / "found.csv").read_text(encoding="utf-8")


def test_detect_hides_names_everywhere(study, keys, capsys):
    (study / "roe_jane.png").write_bytes(b"")
    (study / "roe_john.dcm").write_bytes(b"no")
    Image.new("RGBA", (64, 64)).save(study / "roe_jim.png")
    assert run(study, "--keys", keys, "--hide-names") == 1
    output = capsys.readouterr()
    assert [line.split()[0] for line in output.out.splitlines()] == ["image", *"123456"]
    assert "roe" not in output.out + output.err and str(study) not in output.out + output.err


def test_detect_rows_name_why_the_system_refuses(study, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(detect_command, "load_image_file", refuse)
    registry = Registry(bits=48, keys=(Key(id="ours", message=OURS),))
    rows = detect_command.read_rows(
        [study / "a.png"], ["1"], GridExtractor(), registry, false_positive_rate=1e-6
    )
    assert [(row.decision, row.reason) for row in rows] == [("unreadable", "Permission denied")]


def failing_at(monkeypatch, name, error):
    """Let reading the image of this name end in the error, once."""
    load = detect_command.load_image_file

    def fail(path):
        if path.name == name:
            monkeypatch.setattr(detect_command, "load_image_file", load)
            raise error
        return load(path)

    monkeypatch.setattr(detect_command, "load_image_file", fail)


@pytest.mark.parametrize(
    "error, reason",
    [
        (MemoryError(), "not enough memory for an image of its size"),
        (RuntimeError("CUDA out of memory.\nCompile with"), "CUDA out of memory."),
        (RuntimeError(), "RuntimeError"),
    ],
    ids=["memory", "torch", "nothing said"],
)
def test_detect_goes_on_after_an_image_that_is_too_much(
    study, keys, monkeypatch, capsys, error, reason
):
    failing_at(monkeypatch, "a.png", error)
    assert run(study, "--keys", keys) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(f"unreadable: {reason}") and lines[2].endswith("theirs")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError], ids=["ctrl-c", "error"])
def test_detect_leaves_what_was_finished_when_it_is_stopped(
    study, keys, tmp_path, monkeypatch, capsys, error
):
    path = tmp_path / "found.csv"

    def stop_at(name):
        failing_at(monkeypatch, name, error)
        if error is KeyboardInterrupt:
            assert run(study, "--keys", keys, "--csv", path) == 130
        else:
            with pytest.raises(error):
                run(study, "--keys", keys, "--csv", path)

    stop_at("c.png")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["key"]) for row in rows] == [
        (str(study / "a.png"), "ours"), (str(study / "b.png"), "theirs")]  # fmt: skip
    assert capsys.readouterr().err == f"stopped early: 2 of 3 images are in {path}\n"
    before = path.read_bytes()
    stop_at("a.png")  # nothing is finished, and the earlier file stays
    assert path.read_bytes() == before and not list(tmp_path.glob(".*.part"))


def test_collect_rows_keeps_the_file_up_to_date_for_a_run_that_is_killed(tmp_path):
    path = tmp_path / "found.csv"
    rows = [Row(image=name, decision="unreadable") for name in "abc"]

    def as_they_come(lines):
        for number, row in enumerate(rows):
            assert path.is_file() == (lines > 0 and number > 0)
            assert number == 0 or not lines or len(path.read_text().splitlines()) == 1 + number
            yield row

    assert detect_command.collect_rows(as_they_come(0), path, expected=3, seconds=1e6) == rows
    assert len(path.read_text().splitlines()) == 4
    path.unlink()
    assert detect_command.collect_rows(as_they_come(1), path, expected=3, seconds=0) == rows


def test_detect_takes_a_message_and_a_rate(study, capsys):
    grouped = f"{OURS[:24]} {OURS[24:36]}_{OURS[36:]}"
    image = save_image(grid_image(OURS, wrong=7), study / "d.png")
    assert run(image, "--message", grouped) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-1] == "decision" and lines[1].endswith("  marked")
    assert run(image, "--message", OURS, "--false-positive-rate", "1e-7") == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("not marked")


def errors_of(capsys, *arguments):
    assert run(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("medsign-lite detect: error: ")
    return output.err


def test_detect_refuses_bad_keys(study, keys, tmp_path, capsys):
    assert "expected a message of 0 and 1" in errors_of(capsys, study, "--message", "01x")
    for length in (4, 32):
        found = errors_of(capsys, study, "--message", OURS[:length])
        assert f"--message: expected 48 bits, as the extractor reads, got {length}" in found
    (message,) = random_messages(1, 32, generator=torch.Generator().manual_seed(0))
    other = Registry(bits=32, keys=(Key(id="short", message=message_to_string(message)),))
    found = errors_of(capsys, study, "--keys", write_registry(tmp_path / "short.json", other))
    assert "keys have 32 bits, the extractor reads 48" in found
    assert "none.json does not exist" in errors_of(capsys, study, "--keys", tmp_path / "none.json")
    empty = write_registry(tmp_path / "empty.json", Registry(bits=48))
    assert "at least one key" in errors_of(capsys, study, "--keys", empty)
    for rate in ("0", "2", "nan"):
        found = errors_of(capsys, study, "--keys", keys, "--false-positive-rate", rate)
        assert "expected a false-positive rate in (0, 1)" in found


def test_detect_refuses_bad_places(study, keys, tmp_path, capsys):
    assert "no file or folder" in errors_of(capsys, study, tmp_path / "none", "--keys", keys)
    (tmp_path / "bare").mkdir()
    assert f"no image in {tmp_path / 'bare'}" in errors_of(
        capsys, tmp_path / "bare", "--keys", keys
    )
    found = errors_of(capsys, study, "--keys", keys, "--csv", tmp_path)
    assert "expected a file to write, got a folder" in found
    found = errors_of(capsys, study, "--keys", keys, "--csv", f"{keys}/found.csv")
    assert "keys.json cannot be written" in found


def test_detect_refuses_an_extractor_that_is_a_pickle(tmp_path, keys, capsys):
    image = save_image(torch.rand(3, 48, 64), tmp_path / "a.png")
    (tmp_path / "extractor.pt").write_bytes(b"PK\x03\x04")
    found = errors_of(capsys, image, "--keys", keys, "--extractor", tmp_path / "extractor.pt")
    assert "expected a folder with model.safetensors and config.json, got a file" in found
