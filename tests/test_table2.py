"""The table's runner: kept parts, one row alone, and what is refused."""

import json
import shutil

import pytest
import torch
from grid_extractor import GridExtractor
from PIL import Image
from tiny_pipeline import tiny_pipeline

from medsign_lite.checkpoints import load_checkpoint, weights_fingerprint
from medsign_lite.data import CHEST_FINDINGS, Record, write_manifest
from medsign_lite.judges.judge_networks import (
    FindingClassifier,
    FindingSegmenter,
    JudgeConfig,
    save_judge,
)
from medsign_lite.latent_diffusion import copy_decoder, save_decoder
from medsign_lite.messages import message_to_string, random_message
from medsign_lite.results import read_result
from medsign_lite.tables import table2
from medsign_lite.tables.table2_measurements import at_floor

SMALL = {"size": 32, "widths": (8, 8, 8, 8)}
IMAGES = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """weights/ with two classifiers and a shipped decoder, variants/, manifest.csv."""
    folder, pipeline = tmp_path_factory.mktemp("models"), tiny_pipeline()
    weights = folder / "weights"
    pipeline.save_pretrained(weights / "pipeline")
    torch.manual_seed(0)
    for name in ("classifier", "classifier_second"):
        save_judge(weights / name, FindingClassifier(JudgeConfig(kind="classifier", **SMALL)))
    save_judge(weights / "segmenter", FindingSegmenter(JudgeConfig(kind="segmenter", **SMALL)))
    message = message_to_string(random_message(generator=torch.Generator().manual_seed(0)))
    for path, offset in (("weights/decoder_chest", 0.02), ("variants/medsign/seed-0/decoder", 0.01),
                         ("variants/medsign/seed-1/decoder", 0.03),
                         ("variants/without_tv/seed-0/decoder", 0.05)):  # fmt: skip
        decoder = copy_decoder(pipeline.vae)
        with torch.no_grad():
            decoder.decoder.conv_out.bias += offset
        about = {"message": message, "modality": "chest", "ablation": {"map": {"kind": "sharp"}}}
        save_decoder(folder / path, decoder, about)
    Image.new("L", (32, 32), 90).save(folder / "image.png")
    write_manifest(folder / "manifest.csv", [
        Record(id=f"{i}", image=folder / "image.png", modality="chest", split="test",
               report=" ".join(["edema"] * i) or "no", findings=("edema",) if i else (),
               words=("edema",) if i else (), sides=("",) * bool(i), masks=(None,) * bool(i))
        for i in range(IMAGES)
    ])  # fmt: skip
    return folder


@pytest.fixture
def run(models, tmp_path, monkeypatch):
    monkeypatch.setattr(table2, "load_extractor", lambda folder: GridExtractor())

    def command(*only, **changes):
        options = {
            "modality": "chest",
            "images": IMAGES,
            "data": models / "manifest.csv",
            "weights": models / "weights",
            "variants": models / "variants",
            "out": tmp_path / "out.json",
            "work": tmp_path / "work",
            "resamples": 20,
        }
        pairs = [(f"--{name}", *map(str, value if isinstance(value, tuple) else (value,)))
                 for name, value in (options | changes).items() if value is not None]  # fmt: skip
        table2.main([*sum(pairs, ()), *(("--only", *only) if only else ())])
        return read_result((options | changes)["out"])

    return command


def test_a_decoder_that_was_never_free_is_at_its_floor_and_one_of_a_fixed_factor_is_not(tmp_path):
    decoder = copy_decoder(tiny_pipeline().vae)

    def folders(**quality):
        save_decoder(tmp_path / "decoder", decoder, quality)
        return {"0": tmp_path / "decoder"}

    assert at_floor(folders(first_quality=0.3, last_quality=8.0, quality=0.3))
    assert not at_floor(folders(first_quality=0.3, last_quality=8.0, quality=0.4))
    assert not at_floor(folders(first_quality=0.3, last_quality=0.3, quality=0.3))
    assert not at_floor(folders())
    # It rose, and had fallen again when the training ended: the log knows.
    rows = [{"step": 1, "quality": 0.3}, {"step": 2, "quality": 0.5}, {"step": 3, "evaluation": {}}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not at_floor(folders(first_quality=0.3, last_quality=8.0, quality=0.3))
    (tmp_path / "log.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert at_floor(folders(first_quality=0.3, last_quality=8.0, quality=0.3))


def test_table_holds_every_row_there_is_and_is_not_measured_twice(run, models, tmp_path, capsys):
    document = run()
    values, config = document["values"], document["config"]
    rows = {row["row"]: row for row in values["rows"]}
    assert [*rows] == ["medsign", "without_tv", "random_residual", "shipped"]
    assert rows["medsign"]["seeds"] == ["0", "1"] and rows["random_residual"]["seeds"] == ["0", "1"]
    assert "against_medsign" not in rows["medsign"]
    tv = rows["without_tv"]
    assert set(tv["classifiers"]) == {"classifier", "classifier_second"}
    assert set(tv["classifiers"]["classifier"]) == {*CHEST_FINDINGS, "mean"}
    assert tv["against_medsign"]["psnr"]["value"] < 0 and tv["images"] == IMAGES
    assert (
        tv["command"].endswith(
            "--variants FOLDER --out FILE --resamples 20 --weights WEIGHTS --only without_tv"
        )
        and tv["map"]
    )
    assert set(rows["medsign"]["measured"]) == {"0", "1"} and not tv["at_floor"]
    assert rows["random_residual"]["psnr"]["value"] == pytest.approx(
        rows["medsign"]["psnr"]["value"], abs=0.05
    )
    printed = capsys.readouterr().out
    assert "without_cas" in values["missing"] and "without_cas" in printed
    assert "medsign" in values["missing"] and "of fewer than 3 seeds: medsign" in printed
    whys = {row["key"]: row["why"] for row in values["claims"]}
    assert whys["tv_psnr"] == "Of 3 seeds that are asked for, both rows have 1."
    assert whys["cas_bits"] == "There is no row without_cas yet."
    assert str(models) not in json.dumps(document) and config["images"] == IMAGES
    # Those of the shipped ones that are there.
    parts = ("pipeline", "decoder_chest", "classifier", "segmenter")
    assert config["weights"] == weights_fingerprint(models / "weights", parts)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
    assert run()["values"] == values
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_one_row_alone_is_the_row_of_the_whole_table(run, tmp_path):
    whole = run()["values"]["rows"]
    alone = run("without_tv", work=tmp_path / "other", out=tmp_path / "alone.json")
    assert [row["row"] for row in alone["values"]["rows"]] == ["medsign", "without_tv"]
    pair = (alone["values"]["rows"][1], next(row for row in whole if row["row"] == "without_tv"))
    own = {"command": "", "measured": ""}
    assert pair[0] | own == pair[1] | own
    # In the recorded table it takes the place of the row that is there; the others stay.
    again = run("without_tv", work=tmp_path / "other")
    assert [row["row"] for row in again["values"]["rows"]] == [row["row"] for row in whole]
    assert set(again["config"]["decoders"]) == {row["row"] for row in whole}


def test_rows_of_other_configurations_are_refused(run, models, tmp_path):
    run("without_tv", "shipped")
    with pytest.raises(ValueError, match=r"configuration \(seed was 0 and is 1\): rows of both"):
        run("without_tv", seed=1, work=tmp_path / "other")
    with pytest.raises(ValueError, match=r"\(resamples was 20 and is 21\): rows of both"):
        run("without_tv", resamples=21)
    config = {**read_result(tmp_path / "out.json")["config"]}
    made = {"without_tv": config["decoders"]["without_tv"], "medsign": {"0": "another"}}
    del config["decoders"], config["weights"]
    with pytest.raises(ValueError, match="'another'}: measure all rows again"):
        table2.joined([{"row": "without_tv"}], made, config, tmp_path / "out.json", present={})


def test_the_shipped_row_alone_is_measured_again_without_the_variants(run, tmp_path):
    before = run()
    alone = run("shipped", variants=None, work=tmp_path / "other")
    first, second = ({row["row"]: row for row in document["values"]["rows"]}
                     for document in (before, alone))  # fmt: skip
    assert [*first] == [*second] and second["without_tv"] == first["without_tv"]
    assert "against_medsign" in first["shipped"] and "against_medsign" not in second["shipped"]
    assert second["shipped"]["psnr"] == first["shipped"]["psnr"]
    assert alone["values"]["claims"] == before["values"]["claims"]
    assert alone["config"]["decoders"] == before["config"]["decoders"]


def test_a_row_of_a_decoder_that_is_gone_does_not_stay(run, models, tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(models / "weights", weights)
    before = run(weights=weights)["config"]["decoders"]["shipped"]
    with pytest.raises(ValueError, match="holds rows without a decoder here: .*, without_tv; name"):
        run(weights=weights, variants=None)
    decoder = copy_decoder(tiny_pipeline().vae)
    about = load_checkpoint(weights / "decoder_chest", kind="decoder")[1]
    save_decoder(weights / "decoder_chest", decoder, about)
    with pytest.raises(ValueError, match="holds the row shipped of the decoders .* and here lie"):
        run("without_tv", weights=weights)
    document = run("without_tv", "shipped", weights=weights)
    assert document["config"]["decoders"]["shipped"] != before


def test_bad_input_is_named_before_anything_is_measured(run, models, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no decoder of the row without_cas: .*ablations"):
        run("without_cas")
    with pytest.raises(ValueError, match="--only medsign trains it"):
        run("random_residual", variants=None)
    with pytest.raises(ValueError, match="4 chest reports are needed, .* has 3"):
        run(images=4)
    with pytest.raises(ValueError, match="there is no decoder to measure"):
        run(variants=None, weights=tmp_path)
    with pytest.raises(ValueError, match="--classifier: expected names that differ, got a/x b/x"):
        run(classifier=("a/x", "b/x"))
    chest = FindingClassifier(JudgeConfig(kind="classifier", findings=("edema",), **SMALL))
    save_judge(tmp_path / "narrow", chest)
    with pytest.raises(ValueError, match="classifier 'narrow' has no pneumonia"):
        run(classifier=tmp_path / "narrow")
    samples = tmp_path / "work" / f"chest-{IMAGES}" / "samples"
    run("shipped")
    prompts = samples / "prompts.json"
    prompts.write_text(json.dumps(["edema"] * IMAGES))
    with pytest.raises(ValueError, match="holds samples of other prompts"):
        run("shipped", cache=samples)
    monkeypatch.setattr(table2, "open_classifier", lambda name: pytest.fail("opened"))
    (tmp_path / "empty").mkdir()
    decoder = tmp_path / "empty" / "decoder_chest"
    save_decoder(decoder, copy_decoder(tiny_pipeline().vae), {"message": "1"})
    with pytest.raises(ValueError, match="there is no classifier in"):
        run(weights=tmp_path / "empty")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"modality": "fundus"}, "is a decoder of fundus, not of chest"),
        ({"extractor": "0123456789ab"}, "row medsign: .* with the extractor 0123456789ab, and is"),
    ],
    ids=["modality", "extractor"],
)
def test_a_decoder_of_another_kind_is_refused(run, models, tmp_path, about, message):
    folder = tmp_path / "variants" / "medsign" / "seed-0" / "decoder"
    save_decoder(folder, copy_decoder(tiny_pipeline().vae), {"message": "1" * 48, **about})
    with pytest.raises(ValueError, match=message):
        run("medsign", variants=tmp_path / "variants")
