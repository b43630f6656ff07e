"""Figures with settings: plain functions from arrays and settings to a whole figure.

Each is the static twin of a widget in `widgets.py`: what the widget shows first is what the
function draws with its defaults, for a reader without a kernel.
"""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from medsign_lite.attacks import ATTACK_TABLE, SWEEPS, sweep
from medsign_lite.detection import detect_logits, extract_logits
from medsign_lite.images import quantise
from medsign_lite.messages import message_from_string
from medsign_lite.metrics import contrast_to_noise, roc_auc
from medsign_lite.plotting import (
    plot_bits,
    plot_logit_histogram,
    show_image,
    show_map,
    show_token_maps,
)
from medsign_lite.selection import GAINS, scale_attention, select_token


def sum_attention(
    maps: Mapping[int, Mapping[str, Tensor]],
    *,
    step: int | None = None,
    layer: str | None = None,
    head: int | None = None,
) -> Tensor:
    """Sum one image's attention over all steps, layers and heads, or over the one that is given.

    Args:
        maps: step -> layer name -> (heads, T, h, w), each layer at its own size.

    Returns:
        (T, H, W), H and W those of the largest layer; smaller ones are upsampled (bilinear).

    Raises:
        ValueError: if there is no such step, layer or head.
    """
    if not maps or (step is not None and step not in maps):
        raise ValueError(f"step: expected one of {list(maps)}, got {step!r}")
    names = list(next(iter(maps.values())))
    if layer is not None and layer not in names:
        raise ValueError(f"layer: expected one of {names}, got {layer!r}")
    steps = list(maps) if step is None else [step]
    size = max(tuple(value.shape[-2:]) for value in maps[steps[0]].values())
    total = None
    for name in names if layer is None else [layer]:
        parts = sum(maps[chosen][name] for chosen in steps)  # (heads, T, h, w)
        if head is not None and not 0 <= head < len(parts):
            raise ValueError(f"head: {name} has heads 0 to {len(parts) - 1}, got {head}")
        part = (parts.sum(dim=0) if head is None else parts[head])[None]
        part = F.interpolate(part, size, mode="bilinear", align_corners=False)[0]
        total = part if total is None else total + part
    return total


def attention_figure(
    image: Tensor,
    maps: Mapping[int, Mapping[str, Tensor]],
    tokens: Sequence[str],
    words: Mapping[str, Sequence[int]],
    *,
    mask: Tensor | None = None,
    word: str | None = None,
    token: int | None = None,
    step: int | None = None,
    layer: str | None = None,
    head: int | None = None,
) -> Figure:
    """One word's attention over its image, beside the maps of its tokens.

    Args:
        image: (3, H, W) in [0, 1].
        maps: as in `sum_attention`, for T tokens.
        tokens: T texts.
        words: word -> which of the T tokens it is made of.
        mask: (H, W) bool, where the finding is: drawn as a contour, and scored against.
        word: one of `words`; the first when `None`.
        token: which of the T tokens, one of the word's; their mean when `None`.
        step, layer, head: as in `sum_attention`; the sum over all when `None`.
    """
    word = next(iter(words)) if word is None else word
    if word not in words:
        raise ValueError(f"word: expected one of {list(words)}, got {word!r}")
    own = list(words[word])
    if token is not None and token not in own:
        raise ValueError(f"token: {word!r} is made of {own}, got {token}")
    summed = sum_attention(maps, step=step, layer=layer, head=head)
    if len(summed) != len(tokens):
        raise ValueError(f"expected one map a token, got {len(summed)} and {len(tokens)} tokens")
    chosen = summed[own].mean(dim=0) if token is None else summed[token]
    low, high = chosen.min(), chosen.max()
    map = (chosen - low) / (high - low).clamp_min(1e-12)
    figure = Figure(figsize=(3.2 + 1.5 * len(own), 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 1.5 * len(own)))
    title = f"“{word}”" + ("" if token is None else f", token “{tokens[token]}”")
    if mask is not None:
        large = F.interpolate(
            map[None, None], mask.shape[-2:], mode="bilinear", align_corners=False
        )[0]
        cnr, auc = (
            score(large, mask[None].bool()).item() for score in (contrast_to_noise, roc_auc)
        )
        title += f"\nCNR {cnr:.2f}, AUC {auc:.2f}"
    show_map(image, map, mask=mask, title=title, ax=left)
    show_token_maps(
        summed[own],
        [tokens[index] for index in own],
        chosen=None if token is None else own.index(token),
        ax=right,
    )
    where = [
        "all steps" if step is None else f"step {step}",
        "all layers" if layer is None else layer,
        "all heads" if head is None else f"head {head}",
    ]
    figure.suptitle(", ".join(where), fontsize=9)
    return figure


def cas_figure(
    maps: Tensor,
    tokens: Sequence[str],
    *,
    features: str = "value",
    eps: float | None = None,
    min_samples: int = 5,
    quantile: float = 0.7,
    side: int | None = None,
) -> Figure:
    """A word's token maps (T, h, w), what CAS clusters of them, and the scores it decides on.

    Args:
        tokens: T texts.
        features, eps, min_samples, quantile, side: as in `select_token`.
    """
    selection = select_token(
        maps, range(len(maps)), features=features, eps=eps, min_samples=min_samples,
        quantile=quantile, side=side,
    )  # fmt: skip
    count = len(tokens)
    figure = Figure(figsize=(max(5.0, 1.7 * count), 5.6), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, height_ratios=(2.2, 2.2, 0.5 + 0.25 * count))
    clusters = [score.clusters for score in selection.scores]
    show_token_maps(maps, tokens, scores=clusters, chosen=selection.index, ax=top)
    top.set_title("attention, and its number of clusters", fontsize=9)
    clustered = maps.detach().double().cpu()
    if side is not None and min(maps.shape[-2:]) < side:  # as `select_token` does
        factor = side / min(maps.shape[-2:])
        clustered = F.interpolate(clustered[None], scale_factor=factor, mode="bilinear")[0]
    above = clustered > clustered.flatten(1).quantile(quantile, dim=1)[:, None, None]
    show_token_maps(above.float(), tokens, ax=middle)
    middle.set_title(f"pixels above the {quantile:g} quantile, which are clustered", fontsize=9)
    cells = [
        [token, score.clusters, f"{score.noise:.2f}", f"{score.spread:.2f}",
         "chosen" if score.chosen else "constant" if score.constant else ""]
        for token, score in zip(tokens, selection.scores, strict=True)
    ]  # fmt: skip
    table = bottom.table(
        cells, colLabels=["token", "clusters", "noise", "spread", ""], loc="center",
        cellLoc="center",
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    bottom.set_axis_off()
    return figure


def aas_figure(
    image: Tensor,
    map: Tensor,
    *,
    mask: Tensor | None = None,
    preset: str | None = "literal",
    gain: float | None = None,
    quantile: float = 0.7,
) -> Figure:
    """A map before and after adaptive attention scaling, and the curve between the two.

    Args:
        image: (3, H, W) in [0, 1].
        map: (h, w) attention, any scale.
        mask: (H, W) bool, drawn as a contour.
        preset, gain, quantile: as in `scale_attention`; a gain is ignored where none is used.
    """
    gain = None if GAINS.get(preset, 1.0) is None else gain
    plain = scale_attention(map, preset=None)
    scaled = scale_attention(map, preset=preset, gain=gain, quantile=quantile)
    figure = Figure(figsize=(9.6, 3.3), layout="constrained")
    before, curve, after = figure.subplots(1, 3)
    show_map(image, plain, mask=mask, title="attention", ax=before)
    order = plain.flatten().argsort()
    across, up = (values.flatten()[order].cpu() for values in (plain, scaled))
    curve.plot(across, up, color="black")
    tau = float(plain.float().flatten().quantile(quantile))
    curve.axvline(tau, color="0.4", linestyle="--", linewidth=1)
    curve.text(tau, 1.01, f" {quantile:g} quantile", fontsize=8, va="bottom", ha="center")
    curve.set(xlim=(0, 1), ylim=(0, 1), xlabel="attention", ylabel="scaled")
    title = f"{preset or 'none'}: {scaled.min():.2f} to {scaled.max():.2f}"
    show_map(image, scaled, mask=mask, title=title, ax=after)
    return figure


def detection_figure(
    image: Tensor,
    extractor: nn.Module,
    message: Tensor | str,
    *,
    attack: str = "none",
    strength: float | None = None,
    false_positive_rate: float = 1e-6,
) -> Figure:
    """Attack an image, round it to 8 bits, read it, and show what is decided.

    Args:
        image: (3, H, W) in [0, 1].
        extractor: (B, 3, H, W) in [0, 1] to logits (B, K).
        message: (K,) bits in {0, 1}, or the same as text.
        attack: "none" or a key of `attacks.SWEEPS`.
        strength: of the attack's first parameter; the table's own (the paper's) when `None`.
    """
    if attack != "none" and attack not in SWEEPS:
        raise ValueError(f"attack: expected none or one of {', '.join(SWEEPS)}, got {attack!r}")
    if attack == "none" or strength is None:
        chosen = ATTACK_TABLE[attack]
    else:
        (chosen,) = sweep(attack, (strength,)).values()
    settings = chosen.parameters
    attacked = quantise(chosen(image[None]))
    logits = extract_logits(extractor, attacked)
    bits = (
        message_from_string(message, bits=logits.shape[1]) if isinstance(message, str) else message
    )
    (found,) = detect_logits(logits, bits, false_positive_rate=false_positive_rate)
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    axes = figure.subplot_mosaic([["image", "bits"], ["image", "logits"]], width_ratios=(1, 2))
    parameter = "" if not settings else f" {next(iter(settings.values())):g}"
    show_image(attacked, title=f"{attack}{parameter}", ax=axes["image"])
    plot_bits(bits, (logits[0] > 0).float(), ax=axes["bits"])
    plot_logit_histogram(logits, bits, ax=axes["logits"])
    decision = "watermark detected" if found.detected else "no watermark detected"
    figure.suptitle(
        f"{decision}: {found.matching} of {found.bits} bits, p = {found.p_value:.1e}; "
        f"at most {false_positive_rate:.0e} is needed",
        fontsize=10,
    )
    return figure
