"""Any Stable Diffusion folder: every kind of part through the library, and folders refused."""

import json
import shutil

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
)

from medsign_lite.attention import record_attention
from medsign_lite.generators import check_fit, load_pipeline, offload_parts, sampling_dtype
from medsign_lite.latent_diffusion import copy_decoder, decode, encode, image_size, sample
from medsign_lite.localisation import pathology_map
from tests.tiny_pipeline import tiny_autoencoder, tiny_pipeline, tiny_tokenizer, tiny_unet

PROMPTS = ["no edema", "effusion"]


def scheduler(**changes) -> DDIMScheduler:
    return DDIMScheduler(steps_offset=1, clip_sample=False, **changes)


def shifted_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.4,
        shift_factor=0.1,
    )


# Each with heads x layers: the attention of all tokens together, at any place, for one U-Net call.
KINDS = {
    "1.x": ({}, 2 * 2 + 4 * 2),
    "2.x": (
        {
            "text_width": 24,
            "attention_head_dim": (2, 4),  # diffusers reads this as heads, block by block
            "use_linear_projection": True,
            "scheduler": scheduler(prediction_type="v_prediction"),
        },
        2 + 4 + 2 * 4 + 2 * 2,
    ),
    "predicts-latents": ({"scheduler": scheduler(prediction_type="sample")}, 12),
    "tiny-autoencoder": ({"vae": tiny_autoencoder()}, 12),
    "shifted-latents": ({"vae": shifted_autoencoder()}, 12),
    "short-prompts": ({"tokenizer": tiny_tokenizer(8)}, 12),
    "not-square": ({"sample_size": (8, 16)}, 12),
}


@pytest.fixture(scope="module", params=KINDS, ids=list(KINDS))
def kind(request, tmp_path_factory):
    """A pipeline that was written and loaded again, and its heads x layers."""
    parts, total = KINDS[request.param]
    folder = tmp_path_factory.mktemp("kind")
    tiny_pipeline(**parts).save_pretrained(folder)
    return load_pipeline(folder), total


def test_every_kind_samples_and_records_all_of_its_attention(kind):
    pipeline, total = kind
    with record_attention(pipeline, conditional="second_half") as record:
        latents = sample(pipeline, PROMPTS, seeds=[1, 2], steps=3)
    height, width = image_size(pipeline)
    assert decode(pipeline.vae, latents).shape == (2, 3, height, width)
    assert record.maps.shape == (2, pipeline.tokenizer.model_max_length, *latents.shape[-2:])
    summed = record.maps.sum(dim=1)  # a softmax over the tokens adds up to one
    torch.testing.assert_close(summed, torch.full_like(summed, 3.0 * total))


def test_every_kind_has_maps_of_its_images_size(kind):
    pipeline, _ = kind
    result = pathology_map(pipeline, PROMPTS, ["edema", "effusion"], seeds=[1, 2], steps=2)
    assert result.maps.shape == (2, *image_size(pipeline))
    assert 0 <= result.maps.min() < result.maps.max() <= 1
    assert torch.equal(result.latents, sample(pipeline, PROMPTS, seeds=[1, 2], steps=2))


def test_every_kind_decodes_as_its_own_autoencoder(kind):
    pipeline, _ = kind
    vae = pipeline.vae
    image = torch.rand(1, 3, 32, 32)
    latents = encode(vae, image)
    with torch.no_grad():
        coded = vae.encode(2 * image - 1)
        plain = coded.latent_dist.mean if hasattr(coded, "latent_dist") else coded.latents
        expected = vae.decode(plain).sample / 2 + 0.5
    torch.testing.assert_close(decode(copy_decoder(vae), latents), expected)


def test_real_tiny_autoencoder_in_a_pipeline(root, tmp_path):
    folder = root.parent / "shared" / "data" / "taesd"
    if not folder.is_dir():
        pytest.skip(f"no real autoencoder at {folder.relative_to(root.parent)}")
    tiny_pipeline(vae=AutoencoderTiny.from_pretrained(folder)).save_pretrained(tmp_path)
    pipeline = load_pipeline(tmp_path)
    assert image_size(pipeline) == (128, 128)  # of 16 x 16 latents
    image = pipeline(
        ["edema"],
        num_inference_steps=1,
        output_type="pt",
        latents=torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4)),
    )
    latents = sample(pipeline, ["edema"], seeds=[4], steps=1, guidance=7.5)  # diffusers' default
    expected = decode(copy_decoder(pipeline.vae), latents).clamp(0, 1)
    torch.testing.assert_close(image.images, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_one_step_of_a_constant_network_by_hand(prediction):
    """A U-Net that always says 0.3: one DDIM step leaves what it takes for the clean latents."""
    pipeline = tiny_pipeline(scheduler=scheduler(prediction_type=prediction))
    pipeline.unet.conv_out.weight.data.zero_()
    pipeline.unet.conv_out.bias.data.fill_(0.3)
    latents = sample(pipeline, ["edema"], seeds=[5], steps=1, guidance=1.0)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    alpha = pipeline.scheduler.alphas_cumprod[pipeline.scheduler.timesteps[0]]
    expected = {
        "epsilon": (noise - (1 - alpha).sqrt() * 0.3) / alpha.sqrt(),
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * 0.3,
        "sample": torch.full_like(noise, 0.3),
    }[prediction]
    torch.testing.assert_close(latents, expected)


@pytest.mark.parametrize(
    "other",
    [
        PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        DDPMScheduler(clip_sample=False, steps_offset=1),
    ],
    ids=["pndm", "ddpm"],
)
def test_seed_alone_decides_also_where_the_scheduler_draws_noise(other):
    pipeline = tiny_pipeline(scheduler=other)
    both = sample(pipeline, PROMPTS, seeds=[3, 4], steps=3)
    torch.manual_seed(99)
    alone = sample(pipeline, PROMPTS[1:], seeds=[4], steps=3)
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sliced", [True, False], ids=["sliced", "whole"])
def test_slicing_and_offloading_change_neither_latents_nor_maps(tmp_path, sliced):
    plain = tiny_pipeline()
    plain.save_pretrained(tmp_path)
    saving = load_pipeline(tmp_path, attention_slicing=sliced)
    if not sliced:
        offload_parts(saving, "cpu")  # the hooks are the same, whatever the device
    recorded = []
    for pipeline in (plain, saving, saving):  # and a second call, after the parts have left
        with record_attention(pipeline, conditional="second_half") as record:
            latents = sample(pipeline, PROMPTS, seeds=[1, 2], steps=2)
        recorded.append((latents, record.maps, decode(pipeline.vae, latents)))
    for some in recorded[1:]:
        torch.testing.assert_close(some, recorded[0], rtol=1e-4, atol=1e-4)
    processors = {type(p).__name__ for p in saving.unet.attn_processors.values()}
    assert (processors == {"SlicedAttnProcessor"}) == sliced
    assert bool(getattr(saving, "_all_hooks", None)) != sliced


@pytest.mark.gpu
def test_offloaded_parts_wait_in_main_memory(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    pipeline = load_pipeline(tmp_path, device="cuda", dtype=torch.float16, offload=True)
    latents = sample(pipeline, PROMPTS, seeds=[1, 2], steps=2)
    assert decode(pipeline.vae, latents).isfinite().all()
    assert pipeline.unet.device.type == pipeline.text_encoder.device.type == "cpu"
    assert pipeline.vae.device.type == "cuda"


def test_precision_is_half_where_that_is_fast():
    assert sampling_dtype("cpu") == torch.float32 and sampling_dtype("cuda") == torch.float16
    assert sampling_dtype("cpu", "bfloat16") == torch.bfloat16
    with pytest.raises(ValueError, match="precision must be auto or one of .*got 'double'"):
        sampling_dtype("cpu", "double")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def broken(base, tmp_path):
    """A copy to break."""
    return shutil.copytree(base, tmp_path / "broken")


@pytest.mark.parametrize("inside", [False, True], ids=["folder", "folder-of-folder"])
def test_base_and_separate_unet_of_plain_tensors(base, broken, tmp_path, inside):
    """As DERETFound is given: unet/config.json, unet/diffusion_pytorch_model.bin, nothing else."""
    unet = tiny_unet()
    unet.conv_out.bias.data += 1.0
    unet.save_pretrained(tmp_path / "fundus" / "unet", safe_serialization=False)
    assert (tmp_path / "fundus/unet/diffusion_pytorch_model.bin").is_file()
    shutil.rmtree(broken / "unet")  # a base need not have one of its own
    given = tmp_path / "fundus" if inside else tmp_path / "fundus" / "unet"
    loaded = load_pipeline(broken, unet=given)
    torch.testing.assert_close(loaded.unet.conv_out.bias, unet.conv_out.bias)
    assert sample(loaded, PROMPTS, seeds=[1, 2], steps=1).isfinite().all()


def test_text_encoder_of_plain_tensors(broken):
    weights = broken / "text_encoder" / "model.safetensors"
    torch.save(load_pipeline(broken).text_encoder.state_dict(), weights.with_name(
        "pytorch_model.bin"))  # fmt: skip
    expected = sample(load_pipeline(broken), PROMPTS, seeds=[1, 2], steps=1)
    weights.unlink()
    assert torch.equal(sample(load_pipeline(broken), PROMPTS, seeds=[1, 2], steps=1), expected)


def test_tokenizer_without_a_length_takes_the_text_encoders(broken):
    path = broken / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["model_max_length"]
    path.write_text(json.dumps(config))
    assert load_pipeline(broken).tokenizer.model_max_length == 16


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("model_index.json", r"found no .*model_index\.json"),
        ("unet/config.json", r"the unet's .*unet/config\.json is missing"),
        ("unet/diffusion_pytorch_model.safetensors", "the unet has no weights"),
        ("vae/diffusion_pytorch_model.safetensors", "the vae has no weights"),
        ("text_encoder/model.safetensors", "the text_encoder has no weights"),
        ("tokenizer/tokenizer_config.json", r"the tokenizer's .*tokenizer_config\.json is missing"),
        ("scheduler/scheduler_config.json", r"the scheduler's .*scheduler_config\.json is missing"),
    ],
)
def test_missing_part_is_named(broken, part, message):
    (broken / part).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_pipeline(broken)


@pytest.mark.parametrize("ending", [".fp16.safetensors", ".ckpt"])
def test_weights_under_another_name_are_not_taken(broken, ending):
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name(f"diffusion_pytorch_model{ending}"))
    with pytest.raises(FileNotFoundError, match="the unet has no weights .* drop that from the"):
        load_pipeline(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_dim": 8}, "takes text of width 8, the text encoder makes 16"),
        ({"in_channels": 5}, "takes 5 latent channels, the autoencoder makes 4"),
    ],
    ids=["text", "latents"],
)
def test_unet_that_does_not_fit_is_refused_before_its_weights_are_read(
    base, tmp_path, monkeypatch, changes, message
):
    tiny_unet(**changes).save_pretrained(tmp_path / "unet")
    read = "medsign_lite.generators.UNet2DConditionModel.from_pretrained"
    monkeypatch.setattr(read, lambda *a, **o: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=message):
        load_pipeline(base, unet=tmp_path / "unet")


def test_fit_looks_at_every_blocks_text_width():
    vae, text = {"latent_channels": 4}, {"hidden_size": 16}
    check_fit({"in_channels": 4, "cross_attention_dim": [16, 16]}, vae, text)
    with pytest.raises(ValueError, match="width 32, the text encoder makes 16"):
        check_fit({"in_channels": 4, "cross_attention_dim": [16, 32]}, vae, text)


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("content", ["code", "object", "damaged"])
def test_pickle_of_more_than_tensors_is_refused(broken, tmp_path, part, content):
    names = {"text_encoder": "pytorch_model.bin"}
    for path in (broken / part).glob("*.safetensors"):
        path.unlink()
    path = broken / part / names.get(part, "diffusion_pytorch_model.bin")
    if content == "damaged":
        path.write_bytes(b"not a checkpoint")
    else:
        value = Harm(str(tmp_path / "harmed")) if content == "code" else {"steps": 7}
        torch.save({"conv_in.weight": torch.zeros(1), "callbacks": value}, path)
    message = "got also callbacks" if content == "object" else "cannot be read safely"
    with pytest.raises(ValueError, match=rf"{path.name}: expected plain tensors, .*{message}"):
        load_pipeline(broken)
    assert not (tmp_path / "harmed").exists()


def test_other_folders_files_and_options_are_refused(broken, tmp_path):
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(b"weights")
    with pytest.raises(ValueError, match="diffusers' format, got a file"):
        load_pipeline(checkpoint)
    with pytest.raises(ValueError, match="offload: expected a device other than the CPU"):
        load_pipeline(broken, offload=True)
    index = json.loads((broken / "model_index.json").read_text())
    index["vae"] = ["diffusers", "VQModel"]
    (broken / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="expected a vae of .*AutoencoderTiny.*, got VQModel"):
        load_pipeline(broken)
    (broken / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json is not JSON"):
        load_pipeline(broken)
