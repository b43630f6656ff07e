import errno
import json
import random
import shutil
import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from medsign_lite import runs
from medsign_lite.profiles import profile
from medsign_lite.results import ROOT, read_result
from medsign_lite.runs import BUNDLED_PIPELINE, default_folder, open_run, seed_everything


def make(folder, notebook="03_cas_and_aas", **changes):
    return open_run(notebook, **{"profile": "smoke", "seed": 1, "run_folder": folder, **changes})


def test_open_run_fills_in_profile_overrides_and_own_parameters(tmp_path):
    run = make(
        str(tmp_path / "new"),
        seed="7",
        prompts="5",
        guidance=None,
        own={"word": (str, "effusion"), "gain": (float, "2e1")},
    )
    assert run.folder == tmp_path / "new" and run.folder.is_dir()
    assert (run.seed, run.profile.prompts, run.profile.guidance) == (7, 5, 3.0)
    assert run.parameters == {"word": "effusion", "gain": 20.0}
    assert run.pipeline == BUNDLED_PIPELINE and run.data is None
    assert run.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_pipeline_folder_is_the_users_then_the_runs_own_then_the_bundled_one(tmp_path):
    assert make(tmp_path).pipeline_folder == BUNDLED_PIPELINE
    assert make(tmp_path, pipeline=tmp_path).pipeline_folder == tmp_path.resolve()
    full = make(tmp_path, profile="full")
    with pytest.raises(FileNotFoundError, match="made by the notebook 01_text_to_image_ldm"):
        _ = full.pipeline_folder
    (tmp_path / "pipeline").mkdir(exist_ok=True)
    (tmp_path / "pipeline" / "model_index.json").touch()
    assert full.pipeline_folder == tmp_path / "pipeline"
    assert make(tmp_path, profile="full", pipeline=ROOT).pipeline_folder == ROOT


def test_names_of_other_modules_have_one_home():
    for name in ("PROFILES", "class_profile", "hardware", "read_result", "versions"):
        assert not hasattr(runs, name), f"{name} is imported from where it is defined"


def test_default_folder_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_folder("class") == ROOT / "runs" / "class"
    assert (ROOT / "pyproject.toml").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"profile": "quick"},
            "unknown profile 'quick': expected one of smoke, class, full, paper",
        ),
        ({"promts": 3}, "unknown parameter promts: accepted are .*prompts"),
        ({"seed": "x"}, "parameter seed must be of type int, got 'x'"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"own": {"gain": (float, "a lot")}}, "parameter gain must be of type float"),
        ({"profile": "paper"}, "needs your own checkpoint and data"),
    ],
    ids=["profile", "unknown", "seed", "negative", "own", "paper"],
)
def test_open_run_refuses_before_it_makes_anything(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_open_run_refuses_missing_pipeline_or_data(tmp_path):
    for name in ("pipeline", "data"):
        with pytest.raises(FileNotFoundError, match=f"{name} does not exist: .*nowhere"):
            make(tmp_path / "new", **{name: tmp_path / "nowhere"})


def test_open_run_refuses_a_full_disk(tmp_path, monkeypatch):
    full = shutil._ntuple_diskusage(2**40, 2**40, 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: full)
    with pytest.raises(OSError, match="not enough space: 200 MB are needed and 1 MB are free"):
        make(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_open_run_refuses_a_misspelt_parameter_that_papermill_injected(tmp_path, monkeypatch):
    cells = ["", "profile = 'class'", '# Parameters\nprofile = "smoke"\nguidanse = 2.0\n']
    shell = SimpleNamespace(user_ns={"In": cells})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with pytest.raises(ValueError, match="unknown parameter guidanse: 03_cas_and_aas accepts prof"):
        make(tmp_path)
    cells[2] = '# Parameters\nprofile = "smoke"\nword = "effusion"\n'
    assert make(tmp_path, own={"word": (str, "effusion")}).parameters["word"] == "effusion"


def test_path_stays_in_the_run_folder(tmp_path):
    run = make(tmp_path)
    assert run.path("maps/a.pt") == tmp_path / "maps" / "a.pt"
    assert (tmp_path / "maps").is_dir()
    for name in ("../a.pt", "/a.pt"):
        with pytest.raises(ValueError, match="outside the run folder"):
            run.path(name)


def test_require_names_the_notebook_that_makes_the_file(tmp_path):
    run = make(tmp_path)
    message = (
        r"maps\.pt is missing .* made by the notebook 02_attention_extraction"
        r"(.|\n)*--profile smoke --run-folder .* --notebooks 02"
    )
    with pytest.raises(FileNotFoundError, match=message):
        run.require("maps.pt", made_by="02_attention_extraction")
    run.path("maps.pt").touch()
    assert run.require("maps.pt", made_by="02_attention_extraction") == tmp_path / "maps.pt"


def test_generator_repeats_and_its_streams_differ(tmp_path):
    def draw(seed, offset):
        generator = make(tmp_path, seed=seed).generator(offset)
        return tuple(torch.rand(4, generator=generator).tolist())

    assert draw(1, 0) == draw(1, 0)
    assert len({draw(1, 0), draw(1, 1), draw(2, 0)}) == 3
    assert make(tmp_path).generator().device.type == "cpu"


def test_seed_everything_repeats_all_three_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first
    seed_everything(6)
    assert not set(draw()) & set(first)


def test_record_holds_configuration_and_seed(tmp_path):
    run = make(tmp_path, seed=9, own={"word": (str, "edema")})
    document = read_result(run.record("scores", {"auc": {"value": 0.9, "low": 0.8, "high": 1.0}}))
    assert (tmp_path / "results" / "scores.json").is_file()
    assert document["values"]["auc"]["low"] == 0.8
    config = document["config"]
    assert (config["notebook"], config["seed"]) == ("03_cas_and_aas", 9)
    assert config["profile"]["prompts"] == profile("smoke").prompts
    assert config["parameters"] == {"word": "edema"} and config["pipeline"] == "bundled"


def test_save_figure_keeps_caption_and_alternative_text(tmp_path):
    run = make(tmp_path)
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot([0, 1])
    path = run.save_figure(figure, "line", "It rises.", alt="A rising line.")
    assert path.read_bytes().startswith(b"\x89PNG")
    about = json.loads((tmp_path / "figures" / "line.json").read_text())
    expected = {"notebook": "03_cas_and_aas", "caption": "It rises.", "alt": "A rising line."}
    assert about == expected
    with pytest.raises(ValueError, match="figure line needs alternative text"):
        run.save_figure(figure, "line", "It rises.", alt=" ")
    plt.close(figure)


def test_check_space_of_a_run(tmp_path):
    run = make(tmp_path)
    run.check_space(0)
    with pytest.raises(OSError, match="not enough space") as caught:
        run.check_space(1e12)
    assert caught.value.errno == errno.ENOSPC
