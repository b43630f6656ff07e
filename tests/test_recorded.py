import importlib.util
import shlex
import sys
from types import SimpleNamespace

import pytest
import torch

from medsign_lite import recorded
from medsign_lite.checkpoints import save_checkpoint, weights_fingerprint
from medsign_lite.recorded import STEPS, Step, missing_inputs, recompute, state, words
from medsign_lite.records.gates import GATES, MEASUREMENTS, RECORDED_GATES
from medsign_lite.results import record_result

STEP = Step(command="some.module --data MANIFEST --out RESULTS/a.json --work WORK", output="a.json",
            parts=("extractor",), settings={"images": 500})  # fmt: skip


@pytest.fixture
def weights(tmp_path):
    for part in ("pipeline", "extractor", "decoder"):
        save_checkpoint(tmp_path / "weights" / part, {"w": torch.ones(2)}, {"kind": part})
    return tmp_path / "weights"


def record(folder, **config):
    return record_result(folder / "a.json", {"x": 1}, config)


def test_state_compares_weights_and_settings(tmp_path, weights):
    assert state(STEP, tmp_path, weights) == "missing"
    own = weights_fingerprint(weights, ("extractor",))
    record(tmp_path, images=16, weights=own)
    assert state(STEP, tmp_path, weights) == "stale: images 16, not 500"
    record(tmp_path, images=500)
    assert state(STEP, tmp_path, weights) == "stale: it does not say of which weights it is"
    record(tmp_path, images=500, weights=own)
    assert state(STEP, tmp_path, weights) == "current"
    save_checkpoint(weights / "decoder", {"w": torch.zeros(2)}, {"kind": "decoder"})
    assert state(STEP, tmp_path, weights) == "current"  # it is not of the decoder
    save_checkpoint(weights / "extractor", {"w": torch.zeros(2)}, {"kind": "extractor"})
    assert state(STEP, tmp_path, weights).startswith(f"stale: of the weights {own}, which are now")


def test_a_step_of_no_weights_is_current_once_it_is_recorded(tmp_path, weights):
    step = Step(command="some.module", output="a.json", parts=())
    record(tmp_path)
    assert state(step, tmp_path, weights) == "current"


def test_words_fill_in_what_stands_for_a_place(tmp_path, weights):
    data, results = tmp_path / "m.csv", tmp_path / "results"
    found = words(STEP, data=data, results=results, weights=weights)
    assert found[:5] == [sys.executable, "-m", "some.module", "--data", str(data)]
    assert found[6] == f"{results}/a.json"
    before, options = found[-1], {"data": data, "results": results, "weights": weights}
    save_checkpoint(weights / "extractor", {"w": torch.zeros(2)}, {"kind": "extractor"})
    assert words(STEP, **options)[-1] == before  # the samples are those of the pipeline
    save_checkpoint(weights / "pipeline", {"w": torch.zeros(2)}, {"kind": "pipeline"})
    assert words(STEP, **options)[-1] != before


def test_words_leave_what_was_filled_in_as_it_is(tmp_path, weights):
    data, results = tmp_path / "WORK" / "RESULTS" / "m.csv", tmp_path / "MANIFEST" / "WORK"
    found = words(STEP, data=data, results=results, weights=weights)
    assert found[4] == str(data) and found[6] == f"{results}/a.json"


def test_a_table_without_all_of_its_rows_is_not_current(tmp_path, weights):
    own = weights_fingerprint(weights, ("extractor",))
    record_result(tmp_path / "a.json", {"missing": ["wam-kind"]}, {"images": 500, "weights": own})
    assert state(STEP, tmp_path, weights) == "incomplete: without wam-kind"


def fake_run(monkeypatch, tmp_path, weights, *, works=True, status=0):
    calls = []

    def run(command, cwd):
        calls.append(command)
        if works:
            record(tmp_path, images=500, weights=weights_fingerprint(weights, ("extractor",)))
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(recorded, "subprocess", SimpleNamespace(run=run))
    return calls


@pytest.mark.parametrize("status", [0, 1], ids=["gates pass", "a gate falls short"])
def test_recompute_runs_what_is_not_current_and_nothing_twice(
    tmp_path, weights, monkeypatch, capsys, status
):
    calls = fake_run(monkeypatch, tmp_path, weights, status=status)
    options = {"data": tmp_path / "m.csv", "results": tmp_path, "weights": weights}
    assert recompute({"a": STEP}, **options) and recompute({"a": STEP}, **options)
    assert len(calls) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "a: current"


def test_recompute_says_what_failed_and_goes_on(tmp_path, weights, monkeypatch, capsys):
    calls = fake_run(monkeypatch, tmp_path, weights, works=False, status=1)
    waiting = Step(command="other.module", output="b.json", needs=("no/such/folder",))
    options = {"data": tmp_path / "m.csv", "results": tmp_path, "weights": weights}
    assert not recompute({"a": STEP, "b": waiting, "again": STEP}, **options)
    assert len(calls) == 2
    said = capsys.readouterr().out
    assert "a: its command ended with 1, and it is missing" in said
    assert "b: waits for no/such/folder" in said and missing_inputs(waiting) == ["no/such/folder"]


def test_every_measurement_and_every_recorded_gate_has_its_step(root):
    assert set(recorded.GATES) == set(MEASUREMENTS) and set(MEASUREMENTS) <= set(STEPS)
    assert {gate.measurement for gate in [*GATES, *RECORDED_GATES]} <= set(STEPS)
    unknown = {path.stem for path in (root / "results").glob("*.json")} - set(STEPS)
    assert not unknown, f"recorded, and no step computes it: {unknown}"


@pytest.mark.parametrize("name", STEPS)
def test_every_step_names_a_command_that_exists_and_a_file_of_its_own(name):
    step = STEPS[name]
    module = shlex.split(step.command)[0]
    if importlib.util.find_spec(module) is None:
        assert any(missing.endswith(".py") for missing in missing_inputs(step)), module
    assert [other.output for other in STEPS.values()].count(step.output) == 1


def test_main_lists_and_refuses(tmp_path, capsys):
    assert recorded.main(["--list", "--only", "attacker_chest", "--results", str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["attacker_chest", "missing"]
    assert second.strip().startswith("python -m medsign_lite.adversary.attacker --modality chest")
    for arguments, message in (
        (["--only", "table3"], r"unknown steps ['table3']: expected some of weights, "),
        (["--data", "none.csv"], "expected a manifest of held-out phantoms, got none.csv"),
        ([], "expected a manifest of held-out phantoms, got None"),
    ):
        with pytest.raises(SystemExit):
            recorded.main(arguments)
        assert message in capsys.readouterr().err
