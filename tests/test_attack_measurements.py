import pytest
import torch
from grid_extractor import GridExtractor
from tiny_pipeline import tiny_autoencoder, tiny_pipeline

from medsign_lite.adversary.attack_curves import CURVES, curve
from medsign_lite.adversary.attack_measurements import HELD_OUT, TIMESTEPS, Target, parts
from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.attacks import specification
from medsign_lite.data import Record
from medsign_lite.detection import extract_logits
from medsign_lite.images import quantise, save_image
from medsign_lite.latent_diffusion import copy_decoder, decode

OWN = 4


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A decoder that adds a little brightness; its message is what its first image says."""
    torch.manual_seed(0)
    folder, pipeline = tmp_path_factory.mktemp("own"), tiny_pipeline()
    decoder = copy_decoder(pipeline.vae).eval()
    with torch.no_grad():
        decoder.decoder.conv_out.bias += 0.02
    latents = torch.randn(5, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    image = quantise(decode(decoder, latents[:1]))
    message = (extract_logits(GridExtractor(), image)[0] > 0).float()
    own = [Record(id=str(i), image=folder / f"{i}.png", modality="chest", split="train",
                  report="no finding") for i in range(OWN + HELD_OUT)]  # fmt: skip
    for record in own:
        save_image(torch.rand(3, 32, 32), record.image)
    return Target(
        pipeline=pipeline, decoder=decoder, latents=latents, clean=own,
        detector=Detector(extractor=GridExtractor(), message=message, resamples=5),
    )  # fmt: skip


def all_parts(target, work, **changes):
    options = {"autoencoders": {"tiny": tiny_autoencoder()}, "timesteps": (100,),
               "purification": (2, 0), "counts": (1, 3), "decibels": (30.0,)}  # fmt: skip
    return parts(target, work, **(options | changes))


def test_target_draws_both_images_of_its_latents_as_a_file_would_hold_them(target):
    for images, model in ((target.marked, target.decoder), (target.unmarked, target.pipeline.vae)):
        assert torch.equal(images, quantise(decode(model, target.latents)))
    assert not torch.equal(target.marked, target.unmarked)
    images, latents = target.own
    assert images.shape == (OWN + HELD_OUT, 3, 32, 32) and len(latents) == len(images)


def test_config_names_contents_and_tells_them_apart(target):
    config = target.config()
    assert config == target.config() and config["images"] == 5
    fields = {name: value for name, value in vars(target).items() if name in Target.__annotations__}
    other = Target(**fields | {"decoder": copy_decoder(target.pipeline.vae)}).config()
    assert {name for name in config if config[name] != other[name]} == {"decoder"}
    text = "".join(str(int(bit)) for bit in target.detector.message)
    assert text not in str(config)


def test_parts_cover_every_attack_each_with_a_stream_of_its_own(target, tmp_path):
    found = all_parts(target, tmp_path, timesteps=TIMESTEPS)
    assert {f"curve-{name}" for name in CURVES} < set(found)
    assert {f"diffusion-{timestep}" for timestep in TIMESTEPS} < set(found)
    assert {part.group for part in found.values()} == {
        "unattacked", "curves", "regeneration", "purification", "forgery",
    }  # fmt: skip
    draws = [torch.rand(1, generator=target.generator(name)).item() for name in ("a", "b", "a")]
    assert draws[0] == draws[2] != draws[1]


def test_settings_tell_what_a_part_depends_on(target, tmp_path):
    found = all_parts(target, tmp_path)
    forgery = found["forgery-blurred"].settings
    assert (forgery["counts"], forgery["decibels"]) == ([1, 3], [30.0])
    jpeg = {"strengths": list(CURVES["jpeg"]), "attacks": specification(curve("jpeg").values())}
    assert found["curve-jpeg"].settings == jpeg
    assert found["purification-2"].settings["own_images"] == OWN + HELD_OUT
    tiny, original = (
        found[f"autoencoder-{name}"].settings["model"] for name in ("tiny", "original")
    )
    assert tiny != original


def test_every_kind_of_part_measures(target, tmp_path):
    found = all_parts(target, tmp_path)
    chosen = ("unattacked", "curve-brightness", "autoencoder-original", "autoencoder-tiny",
              "diffusion-100", "purification-0", "purification-2", "forgery-blurred",
              "forgery-regenerated")  # fmt: skip
    rows = {name: found[name].measure(target.generator(name)) for name in chosen}
    (plain,) = rows["unattacked"]
    assert plain["bit_accuracy"] > plain["bit_accuracy_low"] - 1e-9
    assert "false_positives" in plain and "unmarked_bit_accuracy" in plain
    neutral = [row for row in rows["curve-brightness"] if row["strength"] == 1.0]
    assert [row["bit_accuracy"] for row in neutral] == [plain["bit_accuracy"]]
    assert [rows[f"autoencoder-{name}"][0]["model"] for name in ("original", "tiny")] == [
        "original", "tiny",
    ]  # fmt: skip
    assert rows["diffusion-100"][0]["strength"] == 100
    (untouched,), (purified,) = rows["purification-0"], rows["purification-2"]
    assert untouched["bit_accuracy"] == plain["bit_accuracy"] and untouched["psnr"] == 100
    assert purified["psnr"] < 100 and "own_psnr" in purified
    for name in ("blurred", "regenerated"):
        forged = rows[f"forgery-{name}"]
        assert [(row["attack"], row["averaged"]) for row in forged] == [
            ("forge", 1), ("remove", 1), ("forge", 3), ("remove", 3),
        ]  # fmt: skip
        assert all(row["images"] == 2 and row["estimate"] == name for row in forged)


def test_purification_goes_on_from_fewer_steps(target, tmp_path):
    found = all_parts(target, tmp_path)
    assert list(found).index("purification-0") < list(found).index("purification-2")
    (alone,) = all_parts(target, tmp_path / "a")["purification-2"].measure(generator())
    parts_of_one = all_parts(target, tmp_path / "b", purification=(2, 1))
    for steps in (1, 2):
        (row,) = parts_of_one[f"purification-{steps}"].measure(generator())
        (state,) = (tmp_path / "b").rglob("purification.pt")
        assert torch.load(state, weights_only=True)["done"] == steps
    assert row == alone


def test_parts_refuse_to_average_all_images(target, tmp_path):
    with pytest.raises(ValueError, match="averaging 5 images leaves none of 5 to attack"):
        all_parts(target, tmp_path, counts=(1, 5))
