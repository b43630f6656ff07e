"""The command that records Table 1: resumed, refused, recomputed row by row."""

import pytest
import torch
from grid_extractor import GridExtractor
from tiny_pipeline import tiny_pipeline

from medsign_lite.adversary.attacker import weights_of
from medsign_lite.baselines.backbone import (
    SmallBackbone,
    SmallBackboneConfig,
    save_backbone,
    whiten_backbone,
)
from medsign_lite.baselines.localised_watermark import (
    LocalisedConfig,
    LocalisedWatermark,
    save_localised_watermark,
)
from medsign_lite.checkpoints import digest, read_config, save_checkpoint, weights_fingerprint
from medsign_lite.data import Record, write_manifest
from medsign_lite.decoder_recipe import recipe
from medsign_lite.images import save_image
from medsign_lite.latent_cache import write_latent_cache
from medsign_lite.latent_diffusion import copy_decoder, save_decoder
from medsign_lite.messages import message_to_string, random_message
from medsign_lite.results import read_result
from medsign_lite.tables import table1, table1_weights
from medsign_lite.tables.table1_weights import ROWS, load_method, recipes

REPORTS = ["no", "edema", "no edema", "effusion", "no effusion"]
MESSAGE = message_to_string(random_message(generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Everything that the rows need, tiny and untrained, and a cache of 4 latents of 96 pixels."""
    torch.manual_seed(0)
    folder, pipeline = tmp_path_factory.mktemp("models"), tiny_pipeline(sample_size=48)
    pipeline.save_pretrained(folder / "pipeline")
    names = ("decoder_chest", "baselines/stable_signature_chest/decoder",
             "baselines/stable_signature_published_chest/decoder",
             "baselines/medsign_literal_chest/decoder")  # fmt: skip
    for number, name in enumerate(names):
        decoder = copy_decoder(pipeline.vae)
        with torch.no_grad():
            decoder.decoder.conv_out.bias += 0.02 * (number + 1)
        save_decoder(folder / name, decoder, {"message": MESSAGE})
    network = SmallBackbone(SmallBackboneConfig(channels=(32, 48)))
    backbone = whiten_backbone(network, torch.rand(64, 3, 32, 32).split(32), floor=1e-12)
    save_backbone(folder / "baselines/ssl_watermark/backbone", backbone)
    watermark = LocalisedWatermark(LocalisedConfig(bits=32, channels=32))
    save_localised_watermark(folder / "baselines/wam_kind/watermark", watermark)
    for name in ("extractor", "baselines/extractor_published/extractor"):  # read by another one
        save_checkpoint(folder / name, {"weight": torch.ones(1)}, {"kind": "extractor"})
    save_image(torch.rand(3, 32, 32), folder / "image.png")
    write_manifest(folder / "manifest.csv", [
        Record(id=report, image=folder / "image.png", modality="chest", split="test", report=report)
        for report in REPORTS
    ])  # fmt: skip
    write_latent_cache(folder / "cache", torch.randn(4, 4, 48, 48), torch.zeros(4, 48, 48),
                       REPORTS[:4])  # fmt: skip
    return folder


@pytest.fixture
def run(models, tmp_path, monkeypatch):
    monkeypatch.setattr(table1_weights, "load_extractor", lambda folder, device: GridExtractor())

    def command(*arguments, **changes):
        options = {
            "modality": "chest", "images": 4, "data": models / "manifest.csv", "weights": models,
            "baselines": models / "baselines", "cache": models / "cache", "resamples": 5,
            "work": tmp_path / "work", "out": tmp_path / "out.json",
        }  # fmt: skip
        pairs = [(f"--{name}", str(value)) for name, value in (options | changes).items()
                 if value is not None]  # fmt: skip
        table1.main([*sum(pairs, ()), *arguments])
        return read_result(tmp_path / "out.json")

    return command


CHOSEN = ("dct-dwt", "curve-dct-dwt", "medsign-sharp", "curve-medsign-sharp", "chroma")
SHORT = ("--ladder", "34", "38")


def test_main_records_rows_curves_and_gains_with_their_configuration(run, models):
    document = run("--only", *CHOSEN, *SHORT)
    values, config = document["values"], document["config"]
    assert [*values] == ["rows", "curves", "chroma", "gains", "missing"]
    assert "wam-kind" in values["missing"] and "dct-dwt" not in values["missing"]
    assert [row["row"] for row in values["rows"]] == ["dct-dwt", "medsign-sharp"]
    assert [(row["row"], row["rung"]) for row in values["curves"]] == [
        ("dct-dwt", 34), ("dct-dwt", 38), ("medsign-sharp", 34), ("medsign-sharp", 38),
    ]  # fmt: skip
    assert {row["against"] for row in values["gains"]} == {"dct-dwt"}
    assert "per_image" not in str(values)
    assert all("--ladder 34.0 38.0" in row["command"] for row in values["curves"])
    assert values["curves"][-1]["command"].endswith("--only curve-medsign-sharp")
    assert config["weights"] == weights_fingerprint(models, weights_of("chest"))
    assert config["modality"] == "chest" and [*config["parts"]] == [*CHOSEN]
    assert config["parts"]["dct-dwt"]["method"]["psnr"] == 35.17  # as the paper prints it
    assert str(models) not in str(document) and MESSAGE not in str(document)


def test_main_goes_on_and_measures_again_only_what_it_is_told_to(run, tmp_path):
    first = run("--only", "dct-dwt", "chroma")["values"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
    assert {path.stem[:-13] for path in times} == {"dct-dwt", "chroma"}
    assert run("--only", "chroma", "dct-dwt")["values"] == first
    assert times == {path: path.stat().st_mtime_ns for path in times}
    again = run("--only", "dct-dwt", "--again")["values"]["rows"]
    changed = {path.stem[:-13] for path in times if times[path] != path.stat().st_mtime_ns}
    assert changed == {"dct-dwt"}
    assert again[0]["attacks"] == first["rows"][0]["attacks"]


def test_every_row_names_the_command_that_measures_it_alone(run, models, tmp_path):
    (row,) = run("--only", "dct-dwt")["values"]["rows"]
    assert str(models) not in row["command"] and "--seed" not in row["command"]
    words = row["command"].split()
    assert words[:3] == ["python", "-m", "medsign_lite.tables.table1"]
    places = {"MANIFEST": models / "manifest.csv", "FILE": tmp_path / "alone.json",
              "WEIGHTS": models, "BASELINES": models / "baselines",
              "CACHE": models / "cache"}  # fmt: skip
    arguments = [str(places.get(word, word)) for word in words[3:]]
    table1.main([*arguments, "--work", str(tmp_path / "other")])
    (alone,) = read_result(tmp_path / "alone.json")["values"]["rows"]
    same = {name for name in row
            if name not in ("attacks", "measured") and not name.startswith("seconds")}  # fmt: skip
    assert {name: alone[name] for name in same} == {name: row[name] for name in same}


def test_main_measures_under_another_configuration_anew(run, tmp_path):
    run("--only", "dct-dwt")
    with pytest.raises(ValueError, match="resamples is 5 and 6. Name another --out"):
        run("--only", "dct-dwt", resamples=6)
    (tmp_path / "out.json").unlink()
    assert run("--only", "dct-dwt", resamples=6)["config"]["resamples"] == 6
    assert len([*(tmp_path / "work").rglob("dct-dwt-*.json")]) == 2


def test_main_adds_to_the_rows_that_are_recorded_already(run, tmp_path):
    ours = run("--only", "medsign-sharp", "curve-medsign-sharp", *SHORT)["values"]
    # On another machine, with the record alone: the gains take our own curve again.
    both = run("--only", "dct-dwt", "curve-dct-dwt", *SHORT, work=tmp_path / "elsewhere")
    rows = both["values"]["rows"]
    assert [row["row"] for row in rows] == ["dct-dwt", "medsign-sharp"]
    assert rows[1] == ours["rows"][0]
    assert len(both["values"]["curves"]) == 4 and len(both["values"]["gains"]) == 2
    assert {"medsign-sharp", "dct-dwt"} <= set(both["config"]["parts"])
    assert "curve-dct-dwt" not in both["values"]["missing"]
    assert "wam-kind" in both["values"]["missing"]
    # Our own curve alone is compared with what the record says of the others.
    alone = run("--only", "curve-medsign-sharp", *SHORT, work=tmp_path / "third")["values"]
    assert [row["gain"] for row in alone["gains"]] == pytest.approx(
        [row["gain"] for row in both["values"]["gains"]]
    )


def test_decoders_of_another_extractor_are_refused(models, tmp_path, monkeypatch):
    monkeypatch.setattr(table1_weights, "load_extractor", lambda folder, device: GridExtractor())
    vae = tiny_pipeline(sample_size=48).vae
    folders = {"modality": "chest", "vae": vae, "weights": models, "baselines": tmp_path}
    about = {"message": MESSAGE, "extractor": digest(GridExtractor())}
    save_decoder(tmp_path / "stable_signature_chest/decoder", copy_decoder(vae), about)
    assert load_method("stable-signature", **folders).bits == 48
    about = {"message": MESSAGE, "extractor": "0123456789ab"}
    save_decoder(tmp_path / "medsign_literal_chest/decoder", copy_decoder(vae), about)
    with pytest.raises(ValueError, match="trained with the extractor 0123456789ab, and is to be"):
        load_method("medsign-literal", **folders)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_loaded_from_its_folders(models, row, monkeypatch):
    monkeypatch.setattr(table1_weights, "load_extractor", lambda folder, device: GridExtractor())
    vae = tiny_pipeline(sample_size=48).vae
    folders = {"weights": models, "baselines": models / "baselines"}
    method = load_method(row, modality="chest", vae=vae, **folders)
    assert method.key == row and method.bits == (32 if row == "wam-kind" else 48)
    image, latents = torch.full((1, 3, 96, 96), 0.5), torch.zeros(1, 4, 48, 48)
    if row != "ssl-watermark":  # a hundred steps of optimisation: tested where it is written
        assert method.mark(image, latents).shape == image.shape
    assert method.read(image).shape == (1, method.bits)
    if row.startswith(("stable", "medsign")):
        decoders = [name for name in ROWS if name.startswith(("stable", "medsign"))]
        others = {load_method(other, modality="chest", vae=vae, **folders).settings["decoder"]
                  for other in decoders if other != row}  # fmt: skip
        assert method.settings["decoder"] not in others and len(others) == 3


@pytest.mark.parametrize(
    ("row", "command"),
    [
        ("ssl-watermark", "medsign_lite.baselines.backbone_training --data MANIFEST"),
        ("wam-kind", "medsign_lite.baselines.localised_training --data MANIFEST"),
        ("stable-signature", "--attack-strength 0 .*--out .*stable_signature_chest"),
        ("stable-signature-published", "--out .*stable_signature_published_chest"),
        ("medsign-literal", "--kind literal .*--out .*medsign_literal_chest"),
    ],
)
def test_missing_weights_name_the_command_that_trains_them(run, tmp_path, row, command):
    with pytest.raises(FileNotFoundError, match=f"row {row}: .*train them with\n.*{command}"):
        run("--only", row, baselines=tmp_path / "none")


def test_recipes_are_commands_that_the_parsers_accept(models, capsys, monkeypatch):
    table1.main(["--modality", "chest", "--recipes"])
    printed = capsys.readouterr().out.splitlines()
    made = recipes("chest", weights=models, baselines="B")
    assert len(printed) == len(made)
    assert "--kinds sharp literal" in made["cache_chest"]
    decoders = [
        made[name] for name in made if name.endswith("_chest") and "--message" in made[name]
    ]
    message = read_config(models / "decoder_chest" / "config.json")["message"]
    assert len(decoders) == 3 and all(f"--message {message}" in command for command in decoders)
    published = "--attacks none flip crop resize jpeg crop resize jpeg"
    assert published in made["extractor_published"]
    for name in ("medsign_literal_chest", "stable_signature_chest"):
        assert " ".join(recipe("chest")) in made[name]
    assert [f"build/baselines/{name}/decoder" for name in made if "message" in made[name]] == [
        f"build/baselines/{name}" for name in table1_weights.made("chest") if name.endswith("coder")
    ]

    class Parsed(Exception):
        pass

    def stop(*arguments, **options):
        raise Parsed

    for command in made.values():
        module, *arguments = command.split()[2:]
        module = __import__(module, fromlist=["main"])
        monkeypatch.setattr(module, "tune_processor", stop, raising=False)
        monkeypatch.setattr(module, "read_manifest", stop, raising=False)
        with pytest.raises(Parsed):  # an unknown option would be a SystemExit
            module.main(arguments)
    with pytest.raises(ValueError, match="a modality among chest, fundus, got 'mri'"):
        recipes("mri", weights="W", baselines="B")


def test_main_refuses(run, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run("--only", "curve-fog")
    assert "unknown parts ['curve-fog']: expected some of dct-dwt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(out=None)
    with pytest.raises(ValueError, match="holds 4 latents, 5 were asked for"):
        run("--only", "dct-dwt", images=5)
    with pytest.raises(ValueError, match="6 chest reports are needed, the test split"):
        run("--only", "dct-dwt", images=6)
    with pytest.raises(ValueError, match=r"at least two rising PSNRs .* got \[40.0, 38.0\]"):
        run("--only", "dct-dwt", "--ladder", "40", "38")
    with pytest.raises(ValueError, match="rate of 0.001 takes at least 2995 unmarked images"):
        run("--only", "dct-dwt", **{"empirical-rate": 0.001})
    with pytest.raises(ValueError, match="expected a row among dct-dwt, .* got 'fog'"):
        load_method("fog", modality="chest", vae=None, weights=tmp_path, baselines=tmp_path)


def test_main_refuses_images_that_cannot_carry_a_baseline(run, models, tmp_path):
    pipeline = tiny_pipeline()  # images of 32 pixels: 16 blocks for 48 bits
    pipeline.save_pretrained(tmp_path / "small" / "pipeline")
    write_latent_cache(tmp_path / "latents", torch.randn(4, 4, 16, 16), torch.zeros(4, 16, 16),
                       REPORTS[:4])  # fmt: skip
    with pytest.raises(ValueError, match="row dct-dwt: images of 32 x 32 pixels cannot be read"):
        run("--only", "dct-dwt", weights=tmp_path / "small", cache=tmp_path / "latents")
    assert not list((tmp_path / "work").rglob("*.json"))
