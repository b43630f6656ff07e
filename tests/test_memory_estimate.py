"""The estimate against what torch's profiler sees while the same is done."""

import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import medsign_lite.memory_estimate as module
from medsign_lite.attention import record_attention
from medsign_lite.generators import load_pipeline
from medsign_lite.latent_diffusion import LatentDecoder, decode, sample
from medsign_lite.memory_estimate import (
    MemoryEstimate,
    check_memory,
    estimate_sampling,
    free_memory,
)
from tests.tiny_pipeline import tiny_pipeline

FACTOR = 1.3  # the measured peak is within this of the estimate, both ways
PROMPTS = ["no edema", "effusion", "edema", "no"]
SIZE = (64, 64)  # larger than the tiny pipeline's own, so that activations outweigh the rest


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(autouse=True)
def one_thread():
    """Fused attention takes half a megabyte for each thread: much beside a tiny model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measured_peak(work, tmp_path) -> int:
    """Most bytes that the allocator had given out at once, beyond those of before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    path = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["name"] == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("tokens", [0, 5], ids=["plain", "recorded"])
@pytest.mark.parametrize("guidance", [1.0, 3.0], ids=["unguided", "guided"])
def test_sampling_takes_what_was_estimated(pipeline, tmp_path, guidance, tokens):
    estimate = estimate_sampling(pipeline, batch=4, guidance=guidance, tokens=tokens, size=SIZE)
    options = {"seeds": [1, 2, 3, 4], "steps": 1, "guidance": guidance, "size": SIZE}
    conditional = "second_half" if guidance > 1 else "all"

    def work():
        if not tokens:
            return sample(pipeline, PROMPTS, **options)
        with record_attention(pipeline, conditional=conditional, tokens=range(tokens)) as record:
            sample(pipeline, PROMPTS, **options)
        return record.maps

    work()  # what is made once is not of the run
    peak = measured_peak(work, tmp_path)
    assert peak / FACTOR < estimate.activations + estimate.maps < peak * FACTOR


def test_slicing_is_estimated_as_it_computes(pipeline, tmp_path):
    folder = tmp_path / "pipeline"
    pipeline.save_pretrained(folder)
    sliced = load_pipeline(folder, attention_slicing=True)
    estimate = estimate_sampling(sliced, batch=4, size=SIZE)
    options = {"seeds": [1, 2, 3, 4], "steps": 1, "size": SIZE}
    peak = measured_peak(lambda: sample(sliced, PROMPTS, **options), tmp_path)
    assert peak / FACTOR < estimate.activations < peak * FACTOR
    # A score for each pair of 32 x 32 positions, which fused attention never holds.
    assert estimate.activations > estimate_sampling(pipeline, batch=4, size=SIZE).activations


def test_decoding_takes_what_was_estimated(pipeline, tmp_path):
    latents = torch.randn(3, 4, 32, 32)
    estimate = estimate_sampling(pipeline, batch=1, guidance=1.0, size=SIZE, decoded=3)
    peak = measured_peak(lambda: decode(pipeline.vae, latents, batch=3), tmp_path)
    assert peak / FACTOR < estimate.activations < peak * FACTOR


def test_maps_follow_the_formula_and_grow_with_the_tokens(pipeline):
    """By hand: 4 bytes x 2 images x (5 tokens x (16^2 + 8^2) + softmax)."""
    estimate = estimate_sampling(pipeline, batch=2, tokens=5)
    softmax = 3 * 2 * 256 * 16  # three tensors of heads, positions, text
    assert estimate.maps == 4 * 2 * (5 * (16**2 + 8**2) + softmax)
    with record_attention(pipeline, conditional="second_half", tokens=range(5)) as record:
        sample(pipeline, PROMPTS[:2], seeds=[1, 2], steps=1)
    assert record.bytes == estimate.maps - 4 * 2 * softmax
    assert estimate_sampling(pipeline, batch=2).maps == 0


def test_weights_are_counted_in_their_own_type():
    pipeline = tiny_pipeline()
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    numbers = sum(p.numel() for part in parts for p in part.parameters())
    whole = estimate_sampling(pipeline, batch=1)
    # The text encoder counts its positions besides, eight bytes each.
    assert whole.weights == whole.loaded == 4 * numbers + 8 * 16
    half = pipeline.to(torch.float16)
    estimate = estimate_sampling(half, batch=1)
    assert estimate.weights == 2 * numbers + 8 * 16
    assert estimate.activations < 0.7 * whole.activations
    # A decoder in another precision than the pipeline's is a copy.
    decoder = sum(p.numel() for p in LatentDecoder(half.vae).parameters())
    assert estimate_sampling(half, batch=1, decoded=1).weights == estimate.weights + 4 * decoder


def test_estimate_needs_no_weights_in_memory_and_leaves_the_network_alone(pipeline):
    before = dict(pipeline.unet.attn_processors)
    first = estimate_sampling(pipeline, batch=1)
    assert estimate_sampling(pipeline, batch=1) == first  # counts nothing twice
    assert pipeline.unet.attn_processors == before
    # 10,000 images of 1,024 x 1,024 need more than there is, and are only counted.
    large = estimate_sampling(pipeline, batch=10_000, size=(1024, 1024), guidance=1.0)
    assert large.activations > 2**40


def test_free_memory_is_what_the_system_says(monkeypatch, tmp_path):
    assert 2**20 < free_memory("cpu") < 2**50
    assert free_memory("meta") is None
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8 kB\nMemAvailable:   5 kB\n")
    monkeypatch.setattr(module, "Path", lambda name: meminfo)
    assert free_memory("cpu") == 5 * 1024
    meminfo.unlink()  # another system
    sizes = {"SC_PHYS_PAGES": 3, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(module.os, "sysconf", sizes.__getitem__)
    assert free_memory("cpu") == 3 * 4096


@pytest.mark.gpu
def test_free_memory_of_a_gpu_counts_what_torch_keeps():
    kept = torch.empty(2**26, device="cuda")
    before = free_memory("cuda")
    del kept
    assert free_memory("cuda") >= before + 2**28


def test_too_little_memory_is_refused_with_advice(monkeypatch):
    estimate = MemoryEstimate(
        weights=4 * 2**30, loaded=4 * 2**30, activations=9 * 2**30, maps=2**30
    )
    assert str(estimate) == "14.00 GiB (weights 4.00, activations 9.00, maps 1.00)"
    monkeypatch.setattr(module, "free_memory", lambda device: 12 * 2**30)
    check_memory(estimate, "cpu")  # 10 GiB and a fifth
    monkeypatch.setattr(module, "free_memory", lambda device: 12 * 2**30 - 1)
    with pytest.raises(MemoryError, match="needs 14.00 GiB .* 12.00 GiB more .* smaller batch"):
        check_memory(estimate, "cpu")
    monkeypatch.setattr(module, "free_memory", lambda device: None)
    check_memory(estimate, "cpu")  # a system that does not say cannot be asked
