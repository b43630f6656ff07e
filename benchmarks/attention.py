"""Cost of recording attention, beside plain attention and beside published recorders.

    python -m benchmarks.attention [--peers FOLDER] [--output results/attention_benchmark.json]

Every comparison is a ratio within one run. The peers are optional: DAAM 0.2.0 and
attention_map_diffusers 1.0.0 (`pip install --no-deps --target FOLDER daam==0.2.0
attention_map_diffusers==1.0.0`) and OVAM (the folder `ovam` of its checkout, put into FOLDER).
DAAM's import of spaCy, used for parsing sentences only, is answered with an empty module.

- Time: one cross-attention layer of Stable Diffusion 1.5 (4096 positions, 320 channels, 8 heads,
  77 tokens, guidance), interleaved, the minimum of the repetitions, in process time.
- Memory and parity: a U-Net with the layers, sizes and heads of Stable Diffusion 1.5 but narrow
  channels, which change neither our bytes nor DAAM's. OVAM's grow with channels and steps; they are
  measured here and scaled to the real widths and 50 steps by the formula the measurement confirms.
"""

import argparse
import contextlib
import sys
import tempfile
import time
import types
import warnings
from importlib import import_module, metadata

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn

from medsign_lite.attention import record_attention
from medsign_lite.results import record_result

TOKENS, HEADS, STEPS = 77, 8, 50
WIDTHS = (320, 640, 1280, 1280)  # of Stable Diffusion 1.5
NARROW = (32, 64, 128, 128)


def load_peer(module: str, folder: str | None):
    """Import a peer, or say that it is not there and return None."""
    if folder and folder not in sys.path:
        sys.path.append(folder)
    for name in ("spacy", "spacy.tokens"):  # DAAM imports it for sentence parsing, unused here
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["spacy.tokens"].Token = object
    sys.modules["spacy"].tokens = sys.modules["spacy.tokens"]
    try:
        return import_module(module)
    except ImportError as error:
        print(f"{module.split('.')[0]} is not installed, left out ({error}); see --help")
        return None


class SpatialLayer(nn.Module):
    """(rows, C, h, w) to the positions a cross-attention layer sees."""

    def __init__(self, channels: int):
        super().__init__()
        self.attn2 = Attention(channels, cross_attention_dim=768, heads=HEADS, dim_head=40)

    def forward(self, hidden_states, text):
        return self.attn2(hidden_states.flatten(2).transpose(1, 2), encoder_hidden_states=text)


class OneLayer(nn.Module):
    """The smallest network that `record_attention` accepts."""

    def __init__(self, channels: int = 320):
        super().__init__()
        self.down_blocks = nn.ModuleList([SpatialLayer(channels)])

    def forward(self, sample, text):
        return self.down_blocks[0](sample, text)


def daam_layer(daam, module: Attention, index: int, folder: str):
    """DAAM's recorder of one layer; `latent_hw` by hand, as small models need it."""
    parent = types.SimpleNamespace(all_heat_maps=daam.heatmap.RawHeatMapCollection(), _gen_idx=0)
    return daam.trace.UNetCrossAttentionHooker(
        module, parent, layer_idx=index, latent_hw=4096, data_dir=folder
    )


def measure_time(daam, folder: str, repeats: int) -> dict:
    """Milliseconds of process time per layer call: plain, recorded, recorded by DAAM."""
    layer = OneLayer().eval()
    sample = torch.randn(1, 320, 64, 64).repeat(2, 1, 1, 1)
    text = torch.randn(2, TOKENS, 768)

    def timed() -> float:
        start = time.process_time()
        layer(sample, text)
        return 1000 * (time.process_time() - start)

    seen = {"plain": [], "recorded": [], "recorded_4_tokens": []}
    for _ in range(repeats + 1):  # the first round warms up
        seen["plain"].append(timed())
        for name, tokens in (("recorded", None), ("recorded_4_tokens", [5, 6, 7, 8])):
            with record_attention(layer, conditional="second_half", tokens=tokens):
                layer(sample, text)  # the first call makes the buffers
                seen[name].append(timed())
        if daam:
            with daam_layer(daam, layer.down_blocks[0].attn2, 0, folder):
                layer(sample, text)
                seen.setdefault("daam", []).append(timed())
    best = {f"{name}_ms": min(values[1:]) for name, values in seen.items()}
    added = best["recorded_ms"] - best["plain_ms"]
    best["added_over_plain"] = added / best["plain_ms"]
    if daam:
        best["added_over_daam_added"] = added / (best["daam_ms"] - best["plain_ms"])
    return best


def narrow_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=NARROW,
        cross_attention_dim=64,
        attention_head_dim=HEADS,  # diffusers' name for the number of heads
        norm_num_groups=8,
    ).eval()


class Run:
    """The same few guided U-Net calls, as often as wanted."""

    def __init__(self, unet):
        self.unet = unet
        self.sample = torch.randn(1, 4, 64, 64).repeat(2, 1, 1, 1)
        self.text = torch.randn(2, TOKENS, 64)

    def __call__(self, steps: int) -> None:
        for step in range(steps):
            self.unet(self.sample, 981 - 20 * step, encoder_hidden_states=self.text)


def measure_ours(run: Run, steps: int) -> dict:
    with record_attention(run.unet, conditional="second_half", views=("layer",)) as record:
        run(steps)
    with record_attention(run.unet, conditional="second_half") as plain:
        run(1)
    return {"per_layer": record.per_layer, "bytes": plain.bytes}


def measure_daam(daam, run: Run, steps: int, ours: dict, folder: str) -> dict:
    """Bytes of DAAM's sums, and the largest difference from ours, layer by layer."""
    names = {module: name for name, module in run.unet.named_modules()}
    modules = daam.hook.UNetCrossAttentionLocator().locate(run.unet)
    hooks = [daam_layer(daam, module, index, folder) for index, module in enumerate(modules)]
    with contextlib.ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook)
        run(steps)
    size, difference, scale = 0, 0.0, 0.0
    for hook in hooks:
        heads = torch.stack(list(hook.heat_maps.ids_to_heatmaps.values()))  # (heads, T, h, w)
        size += heads.numel() * heads.element_size()
        expected = ours["per_layer"][names[hook.module]][0]
        difference = max(difference, float((heads.sum(dim=0) - expected).abs().max()))
        scale = max(scale, float(expected.max()))
    return {
        "bytes": size,
        "bytes_over_ours": size / ours["bytes"],
        "largest_difference": difference,
        "largest_value": scale,
    }


def measure_ovam(ovam, run: Run, ours: dict) -> dict:
    """OVAM keeps the queries of every step; maps are made from them afterwards.

    `ours` is a record of two steps, the last that are run here.
    """
    names = [name for name in ours["per_layer"] if not name.startswith("down_blocks.3")]
    kept = {}
    for steps in (1, 2):
        hooks = []
        with contextlib.ExitStack() as stack:
            for name in names:
                module = run.unet.get_submodule(name)
                hook = ovam.CrossAttentionHooker(
                    module,
                    name,
                    store_unconditional_hidden_states=False,
                    store_conditional_hidden_states=True,
                )
                hooks.append(stack.enter_context(hook))
            run(steps)
        for hook in hooks:
            hook.store_hidden_states()
        queries = [hook.hidden_states[0] for hook in hooks]
        kept[steps] = sum(query.numel() * query.element_size() for query in queries)

    def per_step(widths: tuple) -> int:
        """5 layers each at 64 x 64, 32 x 32 and 16 x 16: float32 positions x channels."""
        sides = zip((64, 32, 16), widths[:3], strict=True)
        return sum(4 * 5 * side * side * width for side, width in sides)

    if kept != {steps: steps * per_step(NARROW) for steps in kept}:
        raise RuntimeError(f"OVAM keeps {kept} bytes, not the {per_step(NARROW)} per step assumed")
    difference, scale = 0.0, 0.0
    for hook in hooks:
        block = hook.daam_block(heads_epochs_activation="token_softmax")
        expected = ours["per_layer"][hook.name][0]
        difference = max(difference, float((block(run.text[1])[0] - expected).abs().max()))
        scale = max(scale, float(expected.max()))
    real = STEPS * per_step(WIDTHS)
    return {
        "bytes_at_50_steps": real,
        "bytes_over_ours": real / ours["bytes"],
        "largest_difference": difference,
        "largest_value": scale,
    }


def measure_attention_map_diffusers(peer, run: Run, steps: int, ours: dict) -> dict:
    """Exact mode, mean over heads, every step kept."""
    pipeline = types.SimpleNamespace(unet=run.unet)
    with peer.AttentionCapture(pipeline, timesteps="all", mode="exact") as capture:
        run(steps)
    sums, size = {}, 0
    for item in capture.records:
        size += item.data.numel() * item.data.element_size()
        name = item.layer_id.removeprefix("unet.")
        sums[name] = sums.get(name, 0) + item.data[-1].mean(dim=0).T * HEADS  # (T, h*w)
    difference = max(
        float((sums[name] - expected[0].flatten(1)).abs().max())
        for name, expected in ours["per_layer"].items()
    )
    size *= STEPS / steps
    return {
        "bytes_at_50_steps": int(size),
        "bytes_over_ours": size / ours["bytes"],
        "largest_difference": difference,
        "largest_value": max(float(maps.max()) for maps in ours["per_layer"].values()),
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", help="folder with the peers' packages")
    parser.add_argument("--output", default="results/attention_benchmark.json")
    parser.add_argument("--repeats", type=int, default=15, help="at least 9")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.repeats < 9:
        parser.error(f"--repeats: expected at least 9, got {options.repeats}")

    torch.manual_seed(options.seed)
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")  # the peers use names that torch has since deprecated
    daam = load_peer("daam", options.peers)
    ovam = load_peer("ovam.stable_diffusion.block_hooker", options.peers)
    capture = load_peer("attention_map_diffusers", options.peers)
    if daam:
        load_peer("daam.trace", options.peers)
        daam = types.SimpleNamespace(
            **{part: sys.modules[f"daam.{part}"] for part in ("trace", "hook", "heatmap")}
        )
    steps = 2
    with tempfile.TemporaryDirectory() as folder:
        values = {"time_per_layer": measure_time(daam, folder, options.repeats)}
        run = Run(narrow_unet())
        ours = measure_ours(run, steps)
        values["ours"] = {"bytes": ours["bytes"]}
        if daam:
            values["daam"] = measure_daam(daam, run, steps, ours, folder)
        if ovam:
            values["ovam"] = measure_ovam(ovam, run, ours)
        if capture:
            values["attention_map_diffusers"] = measure_attention_map_diffusers(
                capture, run, steps, ours
            )
    timing = values["time_per_layer"]
    bars = [
        ("retained: DAAM's bytes / ours", ">=", 25, values.get("daam", {}).get("bytes_over_ours")),
        ("retained: OVAM's bytes / ours", ">=", 500, values.get("ovam", {}).get("bytes_over_ours")),
        ("time added / plain attention", "<=", 0.25, timing["added_over_plain"]),
        ("time added / time DAAM adds", "<=", 0.5, timing.get("added_over_daam_added")),
    ]
    values["bars"] = []
    for name, sign, bound, measured in bars:
        met = None if measured is None else bool((measured >= bound) == (sign == ">="))
        verdict = {None: "not measured", True: "pass", False: "short"}[met]
        values["bars"].append({"bar": f"{name} {sign} {bound}", "measured": measured, "met": met})
        shown = "-" if measured is None else f"{measured:.3g}"
        print(f"{name:32} {sign} {bound:<5} {shown:>8}  {verdict}")
    for peer in ("daam", "ovam", "attention_map_diffusers"):
        if peer in values:
            entry = values[peer]
            print(
                f"{peer}: largest difference {entry['largest_difference']:.1e} "
                f"on a scale of {entry['largest_value']:.3g}"
            )
    config = {
        "seed": options.seed,
        "repeats": options.repeats,
        "peers": {name: version(name) for name in ("daam", "attention_map_diffusers")}
        | {"ovam": "checkout" if ovam else None},
        "tokens": TOKENS,
        "steps_run": steps,
        "threads": torch.get_num_threads(),
    }
    print("written to", record_result(options.output, values, config))


if __name__ == "__main__":
    main()
