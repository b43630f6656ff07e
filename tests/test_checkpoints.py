import hashlib
import json
import pickle

import pytest
import torch
from torch import nn

from medsign_lite import checkpoints, files

CONFIG = {"kind": "extractor", "bits": 4}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    return checkpoints.save_checkpoint(tmp_path / "model", nn.Linear(3, 4).state_dict(), CONFIG)


def test_checkpoint_round_trip(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    folder = checkpoints.save_checkpoint(tmp_path / "a", network.state_dict(), CONFIG)
    state, config = checkpoints.load_checkpoint(folder, kind="extractor")
    assert config == CONFIG
    assert set(state) == set(network.state_dict())
    for name, weight in network.state_dict().items():
        assert torch.equal(state[name], weight) and state[name].dtype == weight.dtype
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_checkpoint_in_half_precision_is_smaller_and_comes_back_as_float32(tmp_path):
    state = {"w": torch.linspace(-1, 1, 4096), "count": torch.tensor(70_000)}
    folder = checkpoints.save_checkpoint(tmp_path, state, CONFIG, dtype=torch.float16)
    assert (folder / "model.safetensors").stat().st_size < 2 * 4096 + 500
    loaded, _ = checkpoints.load_checkpoint(folder, kind="extractor")
    assert loaded["w"].dtype == torch.float32 and loaded["count"] == 70_000
    assert torch.equal(loaded["w"], state["w"].half().float())


def test_save_checkpoint_accepts_tied_and_strided_weights(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    checkpoints.save_checkpoint(tmp_path, {"a": weight, "b": weight, "c": weight.T}, CONFIG)
    state, _ = checkpoints.load_checkpoint(tmp_path, kind="extractor")
    assert torch.equal(state["b"], weight) and torch.equal(state["c"], weight.T)


def test_save_checkpoint_refuses_overflow_and_a_nameless_kind(tmp_path):
    with pytest.raises(ValueError, match="'w' reaches 100000, too large"):
        checkpoints.save_checkpoint(
            tmp_path, {"w": torch.tensor([1e5])}, CONFIG, dtype=torch.float16
        )
    with pytest.raises(ValueError, match="kind"):
        checkpoints.save_checkpoint(tmp_path, {}, {"bits": 4})
    assert list(tmp_path.iterdir()) == []


def test_save_checkpoint_on_a_full_disk_leaves_the_old_one(folder, monkeypatch):
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    monkeypatch.setattr(files, "open", lambda path, mode: open("/dev/full", mode), raising=False)
    with pytest.raises(OSError, match="no space left on the disk: free some"):
        checkpoints.save_checkpoint(folder, {"w": torch.ones(100_000)}, {"kind": "other"})
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


def load(folder):
    return checkpoints.load_checkpoint(folder, kind="extractor")


def test_load_checkpoint_names_missing_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected a folder .* got a file"):
        load(folder / "model.safetensors")
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors is missing"):
        load(folder)


def test_load_checkpoint_refuses_another_kind(folder):
    with pytest.raises(ValueError, match="expected a model of kind 'decoder', got 'extractor'"):
        checkpoints.load_checkpoint(folder, kind="decoder")


@pytest.mark.parametrize("keep", [0, 5, 30, -8], ids=["empty", "5 bytes", "header", "data"])
def test_load_checkpoint_refuses_empty_and_truncated_weights(folder, keep):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:keep] if keep else b"")
    match = "empty file" if keep == 0 else "truncated or damaged"
    with pytest.raises(ValueError, match=f"model.safetensors: expected .*{match}"):
        load(folder)
    if keep == -8:
        with pytest.raises(ValueError, match=f"expected {len(whole)} bytes.*got {len(whole) - 8}"):
            load(folder)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


@pytest.mark.parametrize("writer", ["torch", "legacy torch", "pickle"])
def test_load_checkpoint_refuses_a_pickle_in_disguise_without_opening_it(folder, writer):
    path = folder / "model.safetensors"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save(Bomb(), path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(ValueError, match="expected safetensors, got a pickle"):
        load(folder)


@pytest.mark.parametrize("ending", ["bin", "pt", "ckpt"])
def test_load_checkpoint_refuses_a_pickle_by_its_name(tmp_path, ending):
    (tmp_path / f"pytorch_model.{ending}").write_bytes(b"anything")
    with pytest.raises(ValueError, match=f"got pytorch_model.{ending}, a pickle"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff"], ids=["empty", "cut", "list", "bytes"])
def test_load_checkpoint_refuses_a_broken_configuration(folder, text):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="config.json: expected .*JSON"):
        load(folder)


def test_configuration_is_readable_json(folder):
    assert json.loads((folder / "config.json").read_text()) == CONFIG


def test_save_checkpoint_refuses_weights_that_are_not_finite(tmp_path):
    state = {"fine": torch.ones(2), "lost": torch.tensor([1.0, torch.nan])}
    with pytest.raises(ValueError, match="weight 'lost' is not finite"):
        checkpoints.save_checkpoint(tmp_path, state, CONFIG)
    assert not list(tmp_path.iterdir())


def test_digest_tells_contents_apart_and_nothing_else():
    layer = nn.Linear(3, 4)
    same = nn.Linear(3, 4)
    same.load_state_dict(layer.state_dict())
    assert checkpoints.digest(layer) == checkpoints.digest(same)
    assert checkpoints.digest(layer) == checkpoints.digest([layer.weight, layer.bias])
    assert checkpoints.digest(layer, same) != checkpoints.digest(layer)
    long = torch.rand(600, 2)  # read in parts
    whole = hashlib.sha256(long.double().numpy().tobytes()).hexdigest()
    assert checkpoints.digest([long]) == whole[:12]
    with torch.no_grad():
        same.bias[0] += 1e-3
    assert checkpoints.digest(layer) != checkpoints.digest(same)


def test_load_strictly_copies_or_names_what_differs():
    source, target = nn.Linear(3, 4), nn.Linear(3, 4)
    checkpoints.load_strictly(target, source.state_dict(), name="reader")
    assert torch.equal(source.weight, target.weight)
    with pytest.raises(ValueError, match="reader: .* 1 missing .bias., 1 unexpected .offset."):
        checkpoints.load_strictly(
            target, {"weight": source.weight, "offset": source.bias}, name="reader"
        )
    with pytest.raises(ValueError, match=r"weight: expected \(4, 3\), got \(2, 3\)"):
        checkpoints.load_strictly(
            target, {"weight": torch.zeros(2, 3), "bias": source.bias}, name="reader"
        )


def test_weights_fingerprint_names_contents_and_not_the_place(tmp_path):
    for place in ("here", "there"):
        for part in ("extractor", "decoder"):
            checkpoints.save_checkpoint(
                tmp_path / place / part, {"w": torch.ones(2)}, {"kind": part}
            )
    here, there = tmp_path / "here", tmp_path / "there"
    whole, decoder = (
        checkpoints.weights_fingerprint(here),
        checkpoints.weights_fingerprint(here, ("decoder",)),
    )
    assert whole == checkpoints.weights_fingerprint(there) != decoder
    checkpoints.save_checkpoint(here / "extractor", {"w": torch.zeros(2)}, {"kind": "extractor"})
    assert checkpoints.weights_fingerprint(here) != whole
    assert checkpoints.weights_fingerprint(here, ("decoder",)) == decoder
    with pytest.raises(FileNotFoundError, match="none holds no weights"):
        checkpoints.weights_fingerprint(here, ("decoder", "none"))
