"""What a killed run leaves behind: written whole, read safely, resumed by the same run alone."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from medsign_lite import files
from medsign_lite.training.training_state import (
    check_settings,
    load_training_state,
    plain_settings,
    save_training_state,
)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


def test_training_state_round_trip_resumes_an_optimiser(tmp_path):
    network = nn.Linear(3, 1)
    optimiser = torch.optim.AdamW(network.parameters())
    network(torch.ones(3)).backward()
    optimiser.step()
    generator = torch.Generator().manual_seed(3)
    state = {
        "step": 7,
        "optimiser": optimiser.state_dict(),
        "network": network.state_dict(),
        "generator": generator.get_state(),
        "history": [{"loss": 0.5}],
        "note": None,
    }
    path = save_training_state(tmp_path / "state.pt", state)
    loaded = load_training_state(path)
    assert loaded["step"] == 7 and loaded["history"] == [{"loss": 0.5}]
    assert torch.equal(loaded["generator"], state["generator"])
    optimiser.load_state_dict(loaded["optimiser"])
    assert load_training_state(tmp_path / "none.pt") is None


def test_save_training_state_refuses_what_could_not_be_read_back(tmp_path):
    with pytest.raises(ValueError, match=r"state\['log'\]\[0\]\['loss'\]: expected .* got float64"):
        save_training_state(tmp_path / "state.pt", {"log": [{"loss": np.float64(0.5)}]})
    assert list(tmp_path.iterdir()) == []


def test_load_training_state_refuses_truncated_empty_and_foreign_files(tmp_path):
    path = save_training_state(tmp_path / "state.pt", {"w": torch.ones(1000)})
    whole = path.read_bytes()
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    for content in (whole[: len(whole) // 2], b"", buffer.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="state.pt: expected .* remove it to start this run"):
            load_training_state(path)


def test_save_training_state_on_a_full_disk_keeps_the_old_state(tmp_path, monkeypatch):
    path = save_training_state(tmp_path / "state.pt", {"step": 1})
    monkeypatch.setattr(files, "open", lambda path, mode: open("/dev/full", mode), raising=False)
    with pytest.raises(OSError, match="state.pt"):
        save_training_state(path, {"step": 2, "w": torch.ones(100_000)})
    assert load_training_state(path) == {"step": 1}


def test_check_settings_names_what_differs_and_nothing_else(tmp_path):
    saved = plain_settings(seed=0, batch=8, sizes=(3, 4), minutes=None)
    check_settings(saved, plain_settings(seed=0, batch=8, sizes=[3, 4], minutes=None), folder="run")
    with pytest.raises(ValueError) as error:
        check_settings(saved, plain_settings(seed=1, batch=8, sizes=(3, 4), rate=0.1), folder="run")
    assert str(error.value) == (
        "run holds a run with other settings: seed was 0, is 1; rate was None, is 0.1"
    )


def test_load_training_state_refuses_a_run_with_other_or_unknown_settings(tmp_path):
    settings = plain_settings(seed=0)
    path = save_training_state(tmp_path / "a" / "state.pt", {"step": 1, "settings": settings})
    assert load_training_state(path, settings=settings)["step"] == 1
    with pytest.raises(ValueError, match=f"{path.parent} holds .* seed was 0, is 2"):
        load_training_state(path, settings=plain_settings(seed=2))
    save_training_state(path, {"step": 1})
    with pytest.raises(ValueError, match="seed was None, is 0"):
        load_training_state(path, settings=settings)
