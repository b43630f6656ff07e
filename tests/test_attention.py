"""`record_attention` against a processor that materialises every softmax, and by hand."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import HeunDiscreteScheduler, UNet2DModel
from tiny_pipeline import tiny_pipeline, tiny_unet

from medsign_lite.attention import record_attention

PROMPTS = ["No effusion, edema.", "Small left effusion"]
TOKENS = 16
LAYERS = 6  # cross-attention in the down and up blocks of the tiny U-Net
HEADS = 2


class PlainAttention:
    """An attention processor that keeps every probability: the reference, memory no object."""

    def __init__(self, kept: list):
        self.kept = kept

    def __call__(self, attention, hidden_states, encoder_hidden_states, attention_mask=None):
        query = attention.to_q(hidden_states).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        key = attention.to_k(encoder_hidden_states)
        value = attention.to_v(encoder_hidden_states)
        key, value = (x.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in (key, value))
        if attention.norm_q is not None:
            query = attention.norm_q(query)
        if attention.norm_k is not None:
            key = attention.norm_k(key)
        logits = torch.einsum("bhpd,bhtd->bhpt", query, key) * attention.scale
        if attention_mask is not None:
            logits = logits + attention_mask[:, None]
        probabilities = logits.double().softmax(dim=-1)
        self.kept.append(probabilities)  # (rows, heads, h*w, T)
        out = (probabilities.to(value) @ value).transpose(1, 2).flatten(2)
        return attention.to_out[1](attention.to_out[0](out))


def materialise(unet, kept: list, parts=("down", "up")) -> None:
    """Set the reference processor in the named parts of the U-Net."""
    for name, module in unet.named_modules():
        if name.endswith("attn2") and name.startswith(parts):
            module.set_processor(PlainAttention(kept))


def reference_maps(kept: list, rows: slice, size: tuple[int, int]) -> torch.Tensor:
    """Upsample every single map, then sum: (B, T, h, w)."""
    total = 0
    for probabilities in kept:
        rows_kept = probabilities[rows].sum(dim=1).transpose(1, 2)  # (B, T, h*w)
        factor = (size[0] * size[1] // rows_kept.shape[-1]) ** 0.5
        grid = (round(size[0] / factor), round(size[1] / factor))
        total = total + F.interpolate(rows_kept.unflatten(-1, grid), size, mode="bilinear")
    return total


def generate(pipeline, prompts=PROMPTS, *, guidance=3.0, steps=2, height=32, width=32):
    """Latents (B, 4, height/2, width/2)."""
    return pipeline(
        prompts,
        guidance_scale=guidance,
        num_inference_steps=steps,
        height=height,
        width=width,
        generator=[torch.Generator().manual_seed(7 + i) for i in range(len(prompts))],
        output_type="latent",
    ).images


@pytest.fixture(autouse=True)
def _several_parts(monkeypatch):
    """The tiny U-Net's positions are fewer than a part: make the parts smaller still."""
    monkeypatch.setattr("medsign_lite.attention.POSITIONS", 100)


@pytest.fixture(scope="module")
def shared_pipeline():
    """For tests that leave no trace in it."""
    return tiny_pipeline()


@pytest.mark.parametrize(
    ("prompts", "guidance", "height", "width"),
    [
        (PROMPTS[:1], 3.0, 32, 32),
        (PROMPTS, 3.0, 32, 32),
        (PROMPTS, 1.0, 32, 32),
        (PROMPTS, 3.0, 32, 48),
        (PROMPTS, 1.0, 64, 16),
    ],
    ids=["one-image", "two-images", "no-guidance", "wide", "tall-no-guidance"],
)
def test_maps_equal_the_materialised_softmax(prompts, guidance, height, width):
    pipeline = tiny_pipeline()
    kept = []
    materialise(pipeline.unet, kept)
    conditional = "second_half" if guidance > 1 else "all"
    with record_attention(pipeline, conditional=conditional) as record:
        generate(pipeline, prompts, guidance=guidance, height=height, width=width)
    rows = slice(len(prompts) if guidance > 1 else 0, None)
    expected = reference_maps(kept, rows, (height // 2, width // 2))
    assert record.maps.shape == (len(prompts), TOKENS, height // 2, width // 2)
    assert record.maps.dtype == torch.float32
    torch.testing.assert_close(record.maps.double(), expected, rtol=1e-5, atol=1e-5)


def test_maps_of_indifferent_queries_are_uniform():
    """By hand: zero queries give every token 1/16; 6 layers x 2 heads x 3 calls = 36 such maps."""
    pipeline = tiny_pipeline()
    for name, module in pipeline.unet.named_modules():
        if name.endswith("attn2.to_q"):
            torch.nn.init.zeros_(module.weight)
    with record_attention(pipeline, conditional="second_half") as record:
        generate(pipeline, steps=3)
    torch.testing.assert_close(record.maps, torch.full((2, TOKENS, 16, 16), 36 / 16))


def test_tokens_select_maps_in_the_order_asked(shared_pipeline):
    with record_attention(shared_pipeline, conditional="second_half") as every:
        generate(shared_pipeline)
    with record_attention(shared_pipeline, conditional="second_half", tokens=[5, 2]) as some:
        generate(shared_pipeline)
    torch.testing.assert_close(some.maps, every.maps[:, [5, 2]])


def test_latents_are_bit_identical_with_and_without_recording(shared_pipeline):
    without = generate(shared_pipeline)
    with record_attention(
        shared_pipeline, conditional="second_half", views=("layer", "head", "step")
    ):
        inside = generate(shared_pipeline)
    assert torch.equal(inside, without)


def test_bytes_follow_the_formula_at_5_and_at_50_steps(shared_pipeline):
    retained = []
    for steps in (5, 50):
        with record_attention(
            shared_pipeline, conditional="second_half", tokens=[2, 3, 5]
        ) as record:
            generate(shared_pipeline, steps=steps, height=32, width=48)
        retained.append(record.bytes)
    assert retained == [4 * 3 * (16 * 24 + 8 * 12) * 2] * 2


def count_hooks(unet) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in unet.modules() for kind in kinds)


def test_hooks_are_removed_when_the_block_ends(shared_pipeline):
    before = count_hooks(shared_pipeline.unet)
    with record_attention(shared_pipeline, conditional="all"):
        assert count_hooks(shared_pipeline.unet) == before + 2 + 4 * LAYERS
    assert count_hooks(shared_pipeline.unet) == before


def test_hooks_are_removed_by_an_exception(shared_pipeline):
    before = count_hooks(shared_pipeline.unet)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), record_attention(shared_pipeline, conditional="all"):
        handle = shared_pipeline.unet.mid_block.register_forward_hook(stop)
        try:
            generate(shared_pipeline, guidance=1.0)
        finally:
            handle.remove()
    assert count_hooks(shared_pipeline.unet) == before


# diffusers converts a tensor with np.array in a way that NumPy 2 warns about.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_calls_count_unet_calls_not_steps():
    pipeline = tiny_pipeline()
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    with record_attention(pipeline, conditional="second_half", views=("step",)) as record:
        generate(pipeline, steps=4)
    assert record.calls == 7
    assert record.per_step.shape == (7, 2, TOKENS, 16, 16)
    # Each call's probabilities sum to 1 over tokens, in every head of every layer.
    torch.testing.assert_close(
        record.per_step.sum(dim=2), torch.full((7, 2, 16, 16), float(LAYERS * HEADS))
    )


def test_views_add_up_to_the_maps_and_leave_them_unchanged(shared_pipeline):
    with record_attention(shared_pipeline, conditional="second_half") as plain:
        generate(shared_pipeline)
    with record_attention(
        shared_pipeline, conditional="second_half", views=("layer", "head", "step")
    ) as record:
        generate(shared_pipeline)
    assert torch.equal(record.maps, plain.maps)
    assert list(record.per_layer) == record.layers and len(record.layers) == LAYERS
    total = sum(F.interpolate(one, (16, 16), mode="bilinear") for one in record.per_layer.values())
    torch.testing.assert_close(total, plain.maps)
    for name, heads in record.per_head.items():
        torch.testing.assert_close(heads.sum(dim=1), record.per_layer[name])
    torch.testing.assert_close(record.per_step.sum(dim=0), plain.maps)
    positions = 16 * 16 + 8 * 8
    assert plain.bytes == 4 * TOKENS * positions * 2
    layers = 4 * TOKENS * 2 * (3 * 16 * 16 + 3 * 8 * 8)
    assert record.bytes == plain.bytes + layers + HEADS * layers + 2 * plain.bytes


def test_layers_choose_parts_of_the_network(shared_pipeline):
    maps = {}
    for layers in (("mid",), ("up",), ("up_blocks.0",), ("up_blocks.1",), ("mid", "up")):
        with record_attention(shared_pipeline, conditional="second_half", layers=layers) as record:
            generate(shared_pipeline)
        maps[layers] = record.maps
    torch.testing.assert_close(maps[("mid", "up")], maps[("mid",)] + maps[("up",)])
    torch.testing.assert_close(maps[("up",)], maps[("up_blocks.0",)] + maps[("up_blocks.1",)])
    assert not torch.allclose(maps[("up_blocks.0",)], maps[("up_blocks.1",)])


def test_half_precision_is_summed_in_float32():
    pipeline = tiny_pipeline().to(torch.bfloat16)
    kept = []
    with record_attention(pipeline, conditional="second_half") as record:
        generate(pipeline, steps=3)
    assert record.maps.dtype == torch.float32
    # Each probability map sums to exactly 1 over tokens; in bfloat16 errors would reach 1e-2.
    expected = torch.full((2, 16, 16), float(LAYERS * HEADS * 3))
    torch.testing.assert_close(record.maps.sum(dim=1), expected, rtol=1e-5, atol=0)
    materialise(pipeline.unet, kept)
    with record_attention(pipeline, conditional="second_half") as record:
        generate(pipeline, steps=3)
    torch.testing.assert_close(
        record.maps.double(), reference_maps(kept, slice(2, None), (16, 16)), rtol=0.02, atol=0.02
    )


def unet_inputs(rows=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(rows, 4, 16, 16, generator=generator)
    return sample, torch.tensor(10), torch.randn(rows, TOKENS, 16, generator=generator)


def test_scale_and_norms_of_the_module_are_used():
    unet = tiny_unet()
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            width = module.inner_dim // module.heads
            module.norm_q, module.norm_k = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
            torch.nn.init.normal_(module.norm_q.weight, 2.0)
            torch.nn.init.normal_(module.norm_k.bias, 2.0)
            module.scale = 0.9
    kept = []
    materialise(unet, kept)
    sample, step, text = unet_inputs()
    with record_attention(unet, conditional="all") as record, torch.no_grad():
        unet(sample, step, encoder_hidden_states=text)
    expected = reference_maps(kept, slice(None), (16, 16))
    torch.testing.assert_close(record.maps.double(), expected, rtol=1e-5, atol=1e-5)


def test_masked_text_tokens_get_no_attention():
    unet = tiny_unet()
    sample, step, text = unet_inputs()
    mask = torch.ones(2, TOKENS, dtype=torch.bool)
    mask[0, 9:] = False
    mask[1, 4:] = False
    with record_attention(unet, conditional="all") as record, torch.no_grad():
        unet(sample, step, encoder_hidden_states=text, encoder_attention_mask=mask)
    assert record.maps[~mask].abs().max() == 0
    shortened = []
    for row, length in enumerate((9, 4)):
        with record_attention(unet, conditional="all") as short, torch.no_grad():
            one = slice(row, row + 1)
            unet(sample[one], step, encoder_hidden_states=text[one, :length])
        shortened.append(short.maps[0])
    torch.testing.assert_close(record.maps[0, :9], shortened[0])
    torch.testing.assert_close(record.maps[1, :4], shortened[1])


def test_training_keeps_no_graph_and_counts_checkpointed_layers_once():
    unet = tiny_unet()
    sample, step, text = unet_inputs()
    with record_attention(unet, conditional="all") as plain, torch.no_grad():
        unet(sample, step, encoder_hidden_states=text)
    unet.enable_gradient_checkpointing()
    unet.train()
    with record_attention(unet, conditional="all") as record:
        unet(sample, step, encoder_hidden_states=text).sample.sum().backward()
    assert not record.maps.requires_grad
    torch.testing.assert_close(record.maps, plain.maps)


def test_inference_mode_and_ordinary_calls_share_a_record():
    unet = tiny_unet()
    sample, step, text = unet_inputs()
    with record_attention(unet, conditional="all") as record:
        with torch.inference_mode():
            unet(sample, step, encoder_hidden_states=text)
        once = record.maps
        with torch.no_grad():
            unet(sample, step, encoder_hidden_states=text)
    torch.testing.assert_close(record.maps, 2 * once)


def test_maps_asked_before_anything_ran_are_refused(shared_pipeline):
    with record_attention(shared_pipeline, conditional="second_half") as record:
        with pytest.raises(RuntimeError, match="run the pipeline inside the `with` block"):
            _ = record.maps
    with pytest.raises(RuntimeError, match="no attention recorded"):
        _ = record.maps


@pytest.mark.parametrize("when", ["before", "inside"])
def test_fused_projections_are_refused(when):
    pipeline = tiny_pipeline()
    if when == "before":
        pipeline.fuse_qkv_projections()
    with (
        pytest.raises(RuntimeError, match="unfuse_qkv_projections"),
        record_attention(pipeline, conditional="second_half"),
    ):
        pipeline.fuse_qkv_projections()
        generate(pipeline)


def test_network_without_cross_attention_is_refused():
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    with (
        pytest.raises(ValueError, match="UNet2DModel has no cross-attention"),
        record_attention(unet, conditional="all"),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conditional": "first"}, "conditional: expected one of"),
        ({"views": ("heads",)}, "views: expected some of"),
        ({"tokens": []}, "tokens: expected distinct positions"),
        ({"tokens": [1, 1]}, "tokens: expected distinct positions"),
        ({"tokens": [-1]}, "tokens: expected distinct positions"),
        ({"layers": ("up_blocks.9",)}, "no cross-attention under 'up_blocks.9'"),
        ({"layers": ()}, "no cross-attention in"),
        ({"layers": "up"}, "expected a sequence of names"),
    ],
    ids=["rows", "view", "no-token", "twice", "negative", "unknown-layer", "no-layer", "string"],
)
def test_bad_arguments_are_refused(shared_pipeline, arguments, message):
    with (
        pytest.raises(ValueError, match=message),
        record_attention(shared_pipeline, **({"conditional": "all"} | arguments)),
    ):
        pass
    assert count_hooks(shared_pipeline.unet) == 0


def test_token_beyond_the_prompt_is_refused(shared_pipeline):
    with (
        pytest.raises(ValueError, match="position 16 of a prompt of 16 tokens"),
        record_attention(shared_pipeline, conditional="second_half", tokens=[3, 16]),
    ):
        generate(shared_pipeline)


def test_second_half_without_guidance_is_refused(shared_pipeline):
    with (
        pytest.raises(ValueError, match='use "all" without guidance'),
        record_attention(shared_pipeline, conditional="second_half"),
    ):
        generate(shared_pipeline, guidance=1.0)


def test_another_shape_in_the_same_block_is_refused(shared_pipeline):
    with (
        pytest.raises(RuntimeError, match="one record holds one shape"),
        record_attention(shared_pipeline, conditional="second_half"),
    ):
        generate(shared_pipeline)
        generate(shared_pipeline, width=48)


def test_a_call_after_one_that_failed_halfway_is_refused(shared_pipeline):
    def stop(*_):
        raise MemoryError

    with record_attention(shared_pipeline, conditional="all"):
        handle = shared_pipeline.unet.mid_block.register_forward_hook(stop)
        with pytest.raises(MemoryError):
            generate(shared_pipeline, guidance=1.0)
        handle.remove()
        with pytest.raises(RuntimeError, match="an earlier call of the U-Net failed halfway"):
            generate(shared_pipeline, guidance=1.0)


def test_view_that_was_not_kept_is_refused(shared_pipeline):
    with record_attention(shared_pipeline, conditional="second_half") as record:
        generate(shared_pipeline)
    with pytest.raises(ValueError, match=r"views=\('head',\)"):
        _ = record.per_head
