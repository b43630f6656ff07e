"""Where a U-Net's cross-attention is: names of its modules, by part of the network."""

from collections.abc import Sequence

from torch import nn

BLOCKS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}


def find_cross_attention(unet: nn.Module, layers: Sequence[str] = ("down", "up")) -> list[str]:
    """Names of the cross-attention modules (`attn2`) in the named parts of a U-Net.

    Args:
        unet: a `UNet2DConditionModel`, or any network with diffusers' attention modules.
        layers: "down", "mid", "up", or beginnings of module names such as "up_blocks.1".

    Raises:
        ValueError: if the network has no cross-attention, none of it lies in `layers`, or a
            module name matches nothing.
        RuntimeError: if the projections of a chosen layer are fused.
    """
    modules = dict(unet.named_modules()) if isinstance(unet, nn.Module) else {}
    names = [
        name
        for name, module in modules.items()
        if name.split(".")[-1] == "attn2" and getattr(module, "is_cross_attention", False)
    ]
    if not names:
        raise ValueError(
            f"{type(unet).__name__} has no cross-attention (no module named attn2); expected a "
            "pipeline with a UNet2DConditionModel, or such a U-Net"
        )
    if isinstance(layers, str):
        raise ValueError(f"layers: expected a sequence of names, got the string {layers!r}")
    prefixes = [BLOCKS.get(layer, layer) + "." for layer in layers]
    chosen = [name for name in names if name.startswith(tuple(prefixes))]
    for layer, prefix in zip(layers, prefixes, strict=True):
        if layer not in BLOCKS and not any(name.startswith(prefix) for name in names):
            raise ValueError(f"layers: no cross-attention under {layer!r}; there is {names}")
    if not chosen:
        raise ValueError(f"layers: no cross-attention in {tuple(layers)}; there is {names}")
    fused = [name for name in chosen if getattr(modules[name], "fused_projections", False)]
    if fused:
        raise RuntimeError(
            f"{fused[0]}: projections are fused, so its keys cannot be seen; "
            "call unfuse_qkv_projections() first"
        )
    return chosen


def spatial_parent(name: str) -> str:
    """Name of the module around a layer whose input is still an image: (rows, C, h, w)."""
    if ".transformer_blocks." in name:
        return name.rsplit(".transformer_blocks.", 1)[0]
    return name.rsplit(".", 1)[0]
