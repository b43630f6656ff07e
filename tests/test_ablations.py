"""The variants differ in what their names say, start alike, and are not trained twice."""

import pytest
import torch
from grid_extractor import GridExtractor
from PIL import Image
from tiny_pipeline import tiny_pipeline

from medsign_lite.checkpoints import load_checkpoint
from medsign_lite.data import Record, write_manifest
from medsign_lite.latent_diffusion import copy_decoder, save_decoder
from medsign_lite.losses import LossWeights
from medsign_lite.sample_cache import sample_with_maps
from medsign_lite.tables import ablations
from medsign_lite.tables.ablations import VARIANTS, Caches, main, recipe_of, weights_of

RECIPE = {
    "weights": {"image": 1.0, "message": 2.0, "total_variation": 3.0, "preservation": 4.0},
    "perceptual": "masked-pyramid-0", "attack_names": ["none", "jpeg"], "temperature": 1.0,
    "optimiser": "adamw", "reads": 1,
    "read_well": 0.9, "first_quality": 0.3, "last_quality": 8.0, "quality_growth": 0.02,
    "batch_size": 2, "average": 0.5, "learning_rate": 5e-4,
}  # fmt: skip
KINDS = ["sharp", "literal", "sharp_without_cas", "without_aas"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline, a cache of 4 with all kinds of maps, a phantom with mask, a decoder's recipe."""
    folder, pipeline = tmp_path_factory.mktemp("made"), tiny_pipeline()
    pipeline.save_pretrained(folder / "pipeline")
    sample_with_maps(
        pipeline, ["no effusion"] * 4, [["effusion"]] * 4, folder / "cache", seeds=range(4),
        steps=1, scale="sharp", kinds=KINDS, progress=False,
    )  # fmt: skip
    save_decoder(folder / "like", copy_decoder(pipeline.vae), RECIPE)
    Image.new("L", (32, 32), 90).save(folder / "image.png")
    Image.new("L", (32, 32), 255).save(folder / "mask.png")
    record = Record(id="a", image=folder / "image.png", modality="chest", split="train",
                    report="edema", findings=("edema",), words=("edema",), sides=("",),
                    masks=(folder / "mask.png",))  # fmt: skip
    write_manifest(folder / "manifest.csv", [record])
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "load_extractor", lambda folder: GridExtractor())

    def command(*only, **changes):
        options = {"modality": "chest", "cache": made / "cache", "out": tmp_path / "out",
                   "pipeline": made / "pipeline", "like": made / "like", "steps": 1, "seeds": 0,
                   "held-out": 1} | changes  # fmt: skip
        pairs = [(f"--{name}", str(value)) for name, value in options.items()]
        main([*sum(pairs, ()), *(("--only", *only) if only else ())])
        return tmp_path / "out"

    return command


def about(folder):
    return load_checkpoint(folder / "decoder", kind="decoder")[1]["ablation"]


def test_every_row_of_the_papers_ablation_and_every_control_is_there():
    paper = {"medsign", "stable_signature", "without_aas", "without_cas", "without_tv",
             "without_preservation"}  # fmt: skip
    assert paper | {
        "stable_signature_attacked",
        "uniform_map",
        "wrong_side_map",
        "exact_mask_map",
    } <= set(VARIANTS)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("medsign", ()), ("without_tv", ("total_variation",)),
     ("without_preservation", ("preservation",)), ("uniform_map", ()),
     ("stable_signature", ("total_variation", "preservation"))],
)  # fmt: skip
def test_weights_lack_what_the_name_says(name, missing):
    weights = LossWeights(**RECIPE["weights"])
    expected = {key: 0.0 if key in missing else value for key, value in vars(weights).items()}
    assert vars(weights_of(weights, VARIANTS[name])) == expected


def test_recipe_is_that_of_a_decoder_and_must_be_whole():
    recipe = recipe_of(RECIPE)
    assert recipe["weights"].preservation == 4 and recipe["perceptual"].name == "masked-pyramid-0"
    assert recipe["attack_names"] == ["none", "jpeg"]
    earlier = {name: value for name, value in RECIPE.items() if name not in ("optimiser", "reads")}
    assert recipe_of(earlier)["optimiser"] == "adamw" and recipe_of(earlier)["reads"] == 1
    lacking = {name: value for name, value in RECIPE.items() if name != "read_well"}
    with pytest.raises(ValueError, match="does not say read_well"):
        recipe_of(lacking)


def test_caches_give_each_variant_its_maps(made):
    pipeline = tiny_pipeline()
    caches = Caches(folder=made / "cache", modality="chest", pipeline=pipeline)
    base = caches.of_kind("sharp").maps
    assert torch.equal(caches.of_kind("mirrored").maps, base.flip(-1))
    uniform = caches.of_kind("uniform").maps.float()
    torch.testing.assert_close(uniform[:, 0, 0], base.float().mean((1, 2)), atol=1e-3, rtol=0)
    assert caches.about("sharp")["agreement"] == pytest.approx(1)
    assert caches.about("uniform")["agreement"] is None
    assert caches.about("without_aas")["agreement"] < 1
    with pytest.raises(ValueError, match="exact masks need phantoms"):
        caches.of_kind("masks")
    with pytest.raises(ValueError, match="holds no maps of kind 'round'"):
        caches.of_kind("round")


def test_training_is_mirrored_where_the_recipe_is(made):
    caches = Caches(folder=made / "cache", modality="chest", pipeline=tiny_pipeline(),
                    mirrored=True, held_out=1)  # fmt: skip
    plain, cache = caches.of_kind("literal"), caches.training("literal")
    assert len(cache) == 4 * 3 + 1 and torch.equal(cache.maps[-1], plain.maps[-1])
    assert torch.equal(cache.maps[3:6], plain.maps[:3].flip(-1))
    other = caches.training("sharp")  # decoded once for all kinds
    assert torch.equal(other.originals, cache.originals)
    assert not torch.equal(other.maps, cache.maps)


def test_variants_go_on_from_one_start_and_are_not_trained_again(run, monkeypatch):
    out = run("medsign", "without_tv", "stable_signature")
    folders = sorted(path.parent.name for path in out.glob("*/seed-0"))
    assert folders == ["medsign", "stable_signature", "start", "without_tv"]
    full, without = (about(out / name / "seed-0") for name in ("medsign", "without_tv"))
    differs = {key for key in full if full[key] != without[key]}
    assert differs == {"name", "weights"} and full["start"]
    signature = about(out / "stable_signature" / "seed-0")
    assert signature["start"] is None and signature["steps"] == 2 and signature["map"] is None
    config = load_checkpoint(out / "stable_signature" / "seed-0" / "decoder", kind="decoder")[1]
    assert config["attack_strength"] == 0 and config["modality"] == "chest"
    assert config["first_quality"] == config["last_quality"] == config["quality"] == 0.1
    monkeypatch.setattr(ablations, "fit", lambda *a, **o: pytest.fail("trained again"))
    run("medsign", "without_tv", "stable_signature")
    with pytest.raises(ValueError, match="decoder was trained otherwise: .*'steps': 1"):
        run("medsign", **{"learning-rate": 1e-3})
    with pytest.raises(ValueError, match="trained otherwise: .*'held_out': 1.*'held_out': 2"):
        run("medsign", **{"held-out": 2})
    other = GridExtractor()
    other.register_buffer("another", torch.ones(1))
    monkeypatch.setattr(ablations, "load_extractor", lambda folder: other)
    with pytest.raises(ValueError, match="decoder was trained otherwise: .*'extractor'"):
        run("medsign")


def test_options_take_the_place_of_the_recipes(run):
    options = {"read-well": 0.8, "first-quality": 0.05, "batch-size": 2}
    out = run("medsign", preservation=7.0, **options)
    config = load_checkpoint(out / "medsign" / "seed-0" / "decoder", kind="decoder")[1]
    found = [config[name.replace("-", "_")] for name in options]
    assert found == [*options.values()] and config["weights"]["preservation"] == 7


def test_seeds_have_their_own_messages(run):
    out = run("stable_signature", seeds=1)
    run("stable_signature", seeds=2)
    messages = [load_checkpoint(path, kind="decoder")[1]["message"]
                for path in sorted(out.glob("*/seed-*/decoder"))]  # fmt: skip
    assert len(messages) == 2 and messages[0] != messages[1]


def test_exact_masks_are_those_of_the_phantoms(run, made, capsys):
    out = run("exact_mask_map", data=made / "manifest.csv")
    found = about(out / "exact_mask_map" / "seed-0")
    assert found["map"] == {"kind": "masks", "mean": 1.0, "mean_square": 1.0, "agreement": None}
    with pytest.raises(SystemExit):
        run()
    assert "exact_mask_map needs --data" in capsys.readouterr().err
