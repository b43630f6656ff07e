"""The gates' decisions, their comparison with recorded figures, and resuming a recording."""

import pytest
import torch

from data_prep.phantoms import write_phantoms
from medsign_lite.checkpoints import weights_fingerprint
from medsign_lite.data import FINDINGS, Record, write_manifest
from medsign_lite.latent_diffusion import BUNDLED
from medsign_lite.records import gates
from medsign_lite.records.gate_measurements import (
    RECORDED,
    SETTINGS,
    WEIGHTS,
    Sample,
    fixed_places,
    mean_of_rows,
    weights_of,
)
from medsign_lite.records.gate_verdicts import Gate, judge, line
from medsign_lite.records.gates import (
    GATES,
    MEASUREMENTS,
    RECORDED_GATES,
    compare,
    judge_recorded,
    main,
    measure,
)
from medsign_lite.results import read_result, record_result


def interval(value, low=None, high=None):
    return {"value": value, "low": value if low is None else low,
            "high": value if high is None else high}  # fmt: skip


def gate(**changes):
    settings = {"name": "bits", "measurement": "m", "figure": "f", "required": 0.9}
    return Gate(**(settings | changes))


@pytest.mark.parametrize(
    ("changes", "measured", "passes"),
    [
        ({}, interval(0.9), True),
        ({}, interval(0.899, 0.88, 0.92), False),
        ({"whole": True}, interval(0.95, 0.89, 0.99), False),
        ({"whole": True}, interval(0.95, 0.91, 0.99), True),
        ({"direction": "at most", "required": 1}, interval(1.0), True),
        ({"direction": "at most", "required": 1}, interval(1.01), False),
        ({"direction": "at most", "required": 1, "whole": True}, interval(0.9, 0.8, 1.1), False),
        ({}, interval(float("nan")), False),
        ({}, {"value": None, "low": None, "high": None}, False),
    ],
    ids=["equal", "below", "low end", "whole", "at most", "above", "high end", "nan", "none"],
)
def test_passes(changes, measured, passes):
    assert gate(**changes).passes(measured) is passes


def test_direction_is_one_of_two():
    with pytest.raises(ValueError, match="at least.*'above'"):
        gate(direction="above")


def test_line_says_everything():
    text = line(gate(), interval(0.85, 0.8, 0.9))
    for part in ("bits", ">= 0.9", "0.850 [0.800, 0.900]", "short"):
        assert part in text
    assert line(gate(), interval(0.95)).split()[-1] == "pass"


def test_every_gate_has_its_measurement_and_the_issues_numbers():
    assert {g.measurement for g in GATES} <= set(MEASUREMENTS)
    assert len({g.name for g in GATES}) == len(GATES)
    required = {(g.measurement, g.figure): g.required for g in GATES}
    for modality in ("chest", "fundus"):
        assert required["reconstruction_" + modality, "psnr"] == 34
        assert required["watermark_" + modality, "none"] == 0.99
        assert required["watermark_" + modality, "psnr_gap"] == 3
    assert required["localisation", "cnr"] == 1.1


def test_mean_of_rows_adds_independent_errors_in_squares():
    rows = [
        {"cnr": 1.0, "cnr_low": 0.7, "cnr_high": 1.3},
        {"cnr": 2.0, "cnr_low": 1.6, "cnr_high": 2.4},
    ]
    mean = mean_of_rows(rows, "cnr")
    assert mean == pytest.approx({"value": 1.5, "low": 1.25, "high": 1.75})
    assert mean_of_rows([], "cnr")["value"] is None


def test_fixed_places_are_those_with_a_pixel_in_half_of_all_masks():
    priors = {"cupping": torch.tensor([[0.0, 0.5]]), "exudates": torch.tensor([[0.49, 0.3]])}
    assert fixed_places(priors) == {"cupping"}


def test_judge_is_false_if_one_falls_short_or_was_not_measured(capsys):
    figures = {"m": {"f": interval(0.95)}}
    assert judge([gate()], figures)
    assert not judge([gate(), gate(name="other", figure="g")], figures)
    assert "not measured" in capsys.readouterr().out


def test_compare_names_what_is_missing_other_or_different(tmp_path, capsys):
    figures = {"m": {"f": interval(0.95, 0.94, 0.96)}}
    assert not compare([gate()], figures, tmp_path, weights={"m": "abc"})
    assert "m.json: nothing is recorded" in capsys.readouterr().out
    record_result(tmp_path / "m.json", figures["m"], {"weights": "abc"})
    assert compare([gate()], figures, tmp_path, weights={"m": "abc"})
    assert not compare([gate()], figures, tmp_path, weights={"m": "other"})
    assert "other weights" in capsys.readouterr().out
    changed = {"m": {"f": interval(0.5, 0.49, 0.51)}}
    assert not compare([gate()], changed, tmp_path, weights={"m": "abc"})
    assert "recorded 0.950 [0.940, 0.960], now 0.500" in capsys.readouterr().out


def test_judge_recorded_takes_the_trained_images_and_no_attack(tmp_path, capsys):
    row = {"bit_accuracy": 0.995, "bit_accuracy_low": 0.99, "bit_accuracy_high": 1.0}
    other = {"attack": "jpeg", "bit_accuracy": 0.7}
    quality = {"psnr": 38.5, "psnr_gap": 4.5}
    own = [gate for gate in RECORDED_GATES if gate.measurement == "real_decoder_own"]
    for scores, passes in ((quality, True), (quality | {"psnr_gap": 3.9}, False)):
        values = {"trained": {"attacks": [row, other], "quality": scores}}
        record_result(tmp_path / "real_decoder_own.json", values, {})
        assert judge_recorded(own, tmp_path) is passes
    assert "0.995 [0.990, 1.000]" in capsys.readouterr().out


def test_judge_recorded_skips_what_cannot_be_recorded_and_asks_for_what_can(tmp_path, capsys):
    assert judge_recorded(RECORDED_GATES, tmp_path, data=tmp_path / "absent")
    assert capsys.readouterr().out.count("skipped, not recorded and no real images") == 2
    assert not judge_recorded(RECORDED_GATES, tmp_path, data=tmp_path)
    assert "python -m benchmarks.real_decoder records it" in capsys.readouterr().out


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    for part in ("pipeline", "extractor", "decoder_chest", "decoder_fundus", "classifier",
                 "segmenter"):  # fmt: skip
        (folder / part).mkdir(parents=True)
        (folder / part / "model.safetensors").write_bytes(part.encode())
    return folder


def sample_of(tmp_path, weights, **changes):
    settings = {"data": tmp_path / "manifest.csv", "weights": weights, "images": 3, "seed": 1,
                "steps": 2, "work": tmp_path / "work"}  # fmt: skip
    return Sample(**(settings | changes))


@pytest.mark.parametrize("modality", ["chest", "fundus"])
def test_the_shipped_judges_know_phantoms_and_say_how_well(tmp_path, modality):
    write_phantoms(tmp_path, train=0, validation=0, test=24, workers=1, progress=False)
    sample = sample_of(tmp_path, BUNDLED.parent, images=24, seed=0)
    found = MEASUREMENTS[f"judges_{modality}"](sample)
    assert found["dice"]["value"] > 0.5 and found["auc"]["value"] > 0.9
    assert found["images"] == 24
    own = set(found["segmenter"]["findings"])
    assert own and own == set(found["classifier"]["findings"]) <= set(FINDINGS[modality])


def test_measure_keeps_finished_parts_and_goes_on(tmp_path, weights, monkeypatch):
    calls = []

    def count(name):
        calls.append(name)
        if name == "second" and calls.count("second") == 1:
            raise KeyboardInterrupt
        return {"f": interval(1.0)}

    for name in ("first", "second"):
        monkeypatch.setitem(MEASUREMENTS, name, lambda sample, name=name: count(name))
        monkeypatch.setitem(WEIGHTS, name, ("pipeline",))
        monkeypatch.setitem(SETTINGS, name, ("images", "seed"))
    sample = sample_of(tmp_path, weights)
    with pytest.raises(KeyboardInterrupt):
        measure(sample, ["first", "second"], keep=tmp_path / "parts")
    figures = measure(sample, ["first", "second"], keep=tmp_path / "parts")
    assert calls == ["first", "second", "second"]
    assert figures["first"]["f"]["value"] == 1.0
    measure(sample_of(tmp_path, weights, seed=2), ["first"], keep=tmp_path / "parts")
    assert calls[3:] == ["first"]  # of another seed: measured and kept beside the other
    measure(sample, ["first"], keep=tmp_path / "parts", again=True)
    assert calls[4:] == ["first"]


def write_one(tmp_path, *, report):
    record = Record(id="a", image=tmp_path / "a.png", modality="chest", split="test", report=report)
    write_manifest(tmp_path / "manifest.csv", [record])


def test_config_names_what_a_measurement_depends_on_and_nothing_else(tmp_path, weights):
    def configs(report):
        write_one(tmp_path, report=report)
        return {name: sample_of(tmp_path, weights).config(name) for name in named}

    named = ("watermark_chest", "localisation", "unmarked", "manifest")
    first, again, other = configs("edema"), configs("edema"), configs("no edema")
    assert first == again
    assert [name for name in named if first[name] != other[name]] == list(named[:3])
    assert set(first["manifest"]) == {"weights"}
    assert set(first["watermark_chest"]) == {"weights", "data", "images", "seed", "steps"}


def test_another_decoder_leaves_the_figures_of_all_else(tmp_path, weights):
    write_one(tmp_path, report="edema")
    sample = sample_of(tmp_path, weights)
    names = ["reconstruction_chest", "unmarked", "weights", "manifest"]
    before = {name: sample.config(name)["weights"] for name in names}
    (weights / "decoder_fundus" / "model.safetensors").write_bytes(b"trained on")
    after = {name: sample.config(name)["weights"] for name in names}
    assert [name for name in names if after[name] != before[name]] == ["unmarked", "weights"]
    assert after["manifest"] is None
    assert sample_of(tmp_path, weights).folder == sample.folder


def test_every_measurement_says_which_weights_it_looks_at():
    found = {name: weights_of(name) for name in MEASUREMENTS}
    assert found["watermark_fundus"][2] == "decoder_fundus"
    shipped = {path.name for path in BUNDLED.parent.iterdir() if path.is_dir()}
    assert all(set(parts) <= shipped for parts in found.values() if parts)


def test_main_exits_by_gates_and_by_agreement(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setattr(gates, "GATES", [gate(measurement="weights", figure="size", required=0)])
    common = ["--data", str(tmp_path / "manifest.csv"), "--weights", str(weights),
              "--results", str(tmp_path / "results"), "--only", "weights",
              "--work", str(tmp_path / "work")]  # fmt: skip
    assert main(common) == 1  # it passes, but nothing is recorded
    assert main([*common, "--record"]) == 0
    document = read_result(tmp_path / "results" / "weights.json")
    assert document["config"] == {"weights": weights_fingerprint(weights)}
    monkeypatch.setattr("medsign_lite.results.commit", lambda: "later")
    assert main([*common, "--record"]) == 0  # kept: of the commit and time that it was measured at
    assert read_result(tmp_path / "results" / "weights.json") == document
    assert main([*common, "--record", "--again"]) == 0
    assert read_result(tmp_path / "results" / "weights.json")["commit"] == "later"
    assert main(common) == 0
    monkeypatch.setattr(gates, "GATES", [gate(measurement="weights", figure="size", required=9)])
    assert main(common) == 1
    assert "short" in capsys.readouterr().out


class _Tokenizer:
    model_max_length = 9

    def __call__(self, text, **_):
        return type("Encoding", (), {"input_ids": [0] * (len(text.split()) + 2)})


def test_records_are_reproducible_and_fresh_ones_come_after_the_recorded(tmp_path, weights):
    records = [
        Record(id=str(i), image=tmp_path / f"{i}.png", modality="chest", split="test",
               report="no finding" if i else "a report that is much longer than that limit is")
        for i in range(RECORDED + 11)
    ]  # fmt: skip
    write_manifest(tmp_path / "manifest.csv", records)

    def ids(**changes):
        sample = sample_of(tmp_path, weights, **changes)
        sample.__dict__["pipeline"] = type("Pipeline", (), {"tokenizer": _Tokenizer()})
        return [int(record.id) for record in sample.records("chest")]

    assert ids(seed=0) == [1, 2, 3]  # report 0 is too long
    assert ids() == ids() and ids() != ids(seed=2)
    assert min(ids(images=10)) > RECORDED
    with pytest.raises(ValueError, match="600 chest images are needed"):
        ids(images=600)


def test_each_measurement_has_its_own_stream(tmp_path, weights):
    sample = sample_of(tmp_path, weights)
    draws = [torch.rand(1, generator=sample.generator(name)).item() for name in ("a", "b", "a")]
    assert draws[0] == draws[2] != draws[1]
