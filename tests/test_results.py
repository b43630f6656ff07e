import errno
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from medsign_lite import results
from medsign_lite.results import check_space, hardware, read_result, record_result, to_json


def test_record_result_reads_back_with_its_origin(tmp_path):
    path = record_result(tmp_path / "deep" / "a.json", {"psnr": 38.5}, {"seed": 3})
    document = read_result(path)
    assert document["values"] == {"psnr": 38.5}
    assert document["config"] == {"seed": 3}
    assert document["versions"]["torch"] == torch.__version__
    assert document["hardware"] and document["recorded"]
    assert [item.name for item in path.parent.iterdir()] == ["a.json"]  # no temporary file left


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.5), 0.5),
        (np.arange(2), [0, 1]),
        (torch.tensor([[1.5]]), [[1.5]]),
        (torch.tensor(True), True),
        (float("nan"), None),
        (torch.tensor([float("inf")]), [None]),
        ((1, "a", None), [1, "a", None]),
        (Path("x/y"), "x/y"),
        ({1: torch.device("cpu")}, {"1": "cpu"}),
    ],
)
def test_to_json_converts(value, expected):
    assert to_json(value) == expected


def test_to_json_refuses_other_objects():
    with pytest.raises(TypeError, match="got object"):
        to_json({"a": [object()]})


def test_read_result_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recorded result at .*missing.json"):
        read_result(tmp_path / "missing.json")
    (tmp_path / "cut.json").write_text('{"values": ')
    with pytest.raises(ValueError, match="not readable JSON"):
        read_result(tmp_path / "cut.json")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected the keys values and config"):
        read_result(tmp_path / "other.json")


def test_a_failed_write_leaves_the_earlier_result(tmp_path, monkeypatch):
    path = record_result(tmp_path / "a.json", {"x": 1}, {})

    def full_disk(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        record_result(path, {"x": 2}, {})
    assert json.loads(path.read_text())["values"] == {"x": 1}


def test_check_space_compares_free_space_of_the_nearest_existing_folder(tmp_path, monkeypatch):
    asked = []

    def usage(place):
        asked.append(place)
        return shutil._ntuple_diskusage(100 * 2**20, 90 * 2**20, 10 * 2**20)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    check_space(tmp_path / "not" / "there", 10)
    with pytest.raises(OSError, match="11 MB are needed and 10 MB are free") as caught:
        check_space(tmp_path / "not" / "there", 11)
    assert caught.value.errno == errno.ENOSPC
    assert asked == [tmp_path, tmp_path]


def test_hardware_names_cores_but_not_the_host():
    text = hardware()
    assert f"{os.cpu_count()} cores" in text
    assert socket.gethostname() not in text


def test_commit_is_none_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.commit() is None


def test_commit_says_that_the_source_is_edited_but_not_that_results_are_new(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "results").mkdir()
    for name in ("module.py", "results/one.json"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    clean = results.commit()
    assert len(clean) == 12
    (tmp_path / "results" / "one.json").write_text("2")
    assert results.commit() == clean
    (tmp_path / "module.py").write_text("2")
    assert results.commit() == f"{clean}+changes"
