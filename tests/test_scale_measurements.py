"""The measurements of large data sets and several processes, small."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from medsign_lite.latent_diffusion import copy_decoder
from medsign_lite.records import scale_measurements
from medsign_lite.records.scale_measurements import manifest, processes
from medsign_lite.training.training_state import save_training_state
from tests.test_finetuning import tiny_vae


def test_manifest_reads_every_row_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(scale_measurements, "ROWS", 500)
    values = manifest(sample=None)
    assert values["rows"]["value"] == 500
    # An interpreter with torch in it, and no more than the whole machine.
    assert 50 < values["peak"]["value"] < 100_000
    assert 0 <= values["growth"]["value"] < values["peak"]["value"]


def test_manifest_counts_its_own_process_and_not_the_one_that_starts_it(monkeypatch):
    monkeypatch.setattr(scale_measurements, "ROWS", 500)
    ballast = b"x" * 2**30
    assert manifest(sample=None)["peak"]["value"] < len(ballast) / 2**20


def test_processes_compares_what_one_and_two_have_trained(tmp_path, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        out = Path(command[command.index("--out") + 1])
        # One process moves every weight by 2, two move them by 2.5.
        step = 2.5 if "--nproc_per_node=2" in command else 2.0
        state = {name: weight + step for name, weight in copy_decoder(vae).state_dict().items()}
        out.mkdir()
        save_training_state(out / "training.pt", {"decoder": state})
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr("subprocess.run", run)
    vae = tiny_vae()
    sample = SimpleNamespace(
        generated=lambda modality: None, folder=tmp_path, weights=tmp_path / "weights",
        pipeline=SimpleNamespace(vae=vae),
    )  # fmt: skip
    values = processes(sample)
    assert values["difference"]["value"] == pytest.approx(0.25)
    assert values["moved"]["value"] == pytest.approx(2.0)
    assert ["torch.distributed.run" in command for command in commands] == [False, True]
    assert all(str(tmp_path / "samples_chest") in command for command in commands)
    failed = SimpleNamespace(returncode=1, stdout="", stderr="no such latents")
    monkeypatch.setattr("subprocess.run", lambda command, **_: failed)
    with pytest.raises(RuntimeError, match="exited with 1: no such latents"):
        processes(sample)
