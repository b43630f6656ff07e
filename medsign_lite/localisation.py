"""From prompts and words to pathology localisation maps (MedSign, Kim et al., 2025, Sec. 2.2).

A report names a finding; its word is several tokens; each token has a map of where the network
looked while it drew. CAS picks the token whose map is most compact and AAS turns that map into one
that protects (both in `selection.py`): high over the pathology, low elsewhere.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from medsign_lite.attention import record_attention
from medsign_lite.latent_diffusion import image_size, sample, scale_factor
from medsign_lite.selection import (
    GAINS,
    SMALL_MAPS,
    Selection,
    TokenScore,
    average_tokens,
    check_cas,
    scale_attention,
    select_token,
)

__all__ = [
    "PathologyMaps",
    "Selection",
    "TokenScore",
    "attention_on_latents",
    "average_tokens",
    "cas_settings",
    "encoded_map",
    "pathology_map",
    "scale_attention",
    "select_token",
    "word_tokens",
]


class WordCutOff(ValueError):
    """A word that the tokenizer's limit cuts off: the text encoder never reads it."""


class WordNotFound(ValueError):
    """A word that a prompt does not contain as a whole word."""


def word_tokens(tokenizer, prompt: str, word: str, *, occurrence: int = 0) -> list[int]:
    """Positions, in the padded prompt that the pipeline encodes, of the tokens of a word.

    Args:
        tokenizer: a fast tokenizer that pads on the right, as a pipeline's CLIP tokenizer does.
        prompt: the text given to the pipeline.
        word: a word or phrase of the prompt; whole words, capitals and line breaks do not matter.
        occurrence: which one, from 0, where the prompt says it more than once.

    Returns:
        positions in ascending order, counting the start token as 0.

    Raises:
        ValueError: if the prompt does not contain the word as a whole word (`WordNotFound`) or not
            that often, or the tokenizer's limit cuts it off (`WordCutOff`). The prompt is not
            quoted: it may be a patient's report.
    """
    parts = [re.escape(part) for part in word.split()]
    if not parts:
        raise ValueError(f"word: expected at least one letter, got {word!r}")
    pattern = r"(?<!\w)" + r"\s+".join(parts) + r"(?!\w)"
    found = [match.span() for match in re.finditer(pattern, prompt, re.IGNORECASE)]
    if not found:
        raise WordNotFound(
            f"the prompt, of {len(prompt)} characters, does not contain the word {word!r}"
        )
    if not 0 <= occurrence < len(found):
        raise ValueError(
            f"occurrence {occurrence} of {word!r}: the prompt contains it {len(found)} time(s), "
            "counted from 0"
        )
    if not tokenizer.is_fast or tokenizer.padding_side != "right":
        raise ValueError(
            f"expected a fast, right-padding tokenizer, got {type(tokenizer).__name__}"
        )
    begin, end = found[occurrence]
    whole = tokenizer(prompt, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    positions = [i for i, (first, last) in enumerate(whole) if first < end and last > begin]
    if not positions:
        raise ValueError(f"the tokenizer makes no token of the word {word!r}")
    kept = tokenizer.model_max_length - 1  # the end token takes the last place
    if len(whole) > tokenizer.model_max_length and positions[-1] >= kept:
        raise WordCutOff(
            f"the tokenizer's limit of {tokenizer.model_max_length} cuts off the word {word!r}: it "
            f"ends at token {positions[-1]} of {len(whole)}; shorten the prompt"
        )
    return positions


def cas_settings(pipeline) -> dict:
    """Options of `select_token` for a pipeline's latents: `SMALL_MAPS` below 64 x 64, else none.

    Raises:
        ValueError: if its U-Net's configuration does not say how large they are.
    """
    side = min(image_size(pipeline)) // scale_factor(pipeline.vae)
    return dict(SMALL_MAPS) if side < SMALL_MAPS["side"] else {}


@dataclass(frozen=True, kw_only=True)
class PathologyMaps:
    """What `pathology_map` and `encoded_map` return.

    Attributes:
        maps: (B, H, W) in [0, 1] on the CPU, high over the pathology; 0 where no word was given.
        latents: (B, C, h, w) scaled latents that the maps belong to.
        selections: for each image one `Selection` per word; empty when tokens were averaged.
        others: maps of the same attention made otherwise, by name; see `pathology_map`.
    """

    maps: Tensor
    latents: Tensor
    selections: tuple[tuple[Selection, ...], ...]
    others: dict[str, Tensor] = field(default_factory=dict)


def pathology_map(
    pipeline,
    prompts: Sequence[str],
    words: Sequence[str | Sequence[str]],
    *,
    seeds: Sequence[int],
    steps: int = 25,
    guidance: float = 3.0,
    layers: Sequence[str] = ("down", "up"),
    select: str = "cas",
    cas: Mapping | None = None,
    scale: str | None = "literal",
    quantile: float = 0.7,
    size: str = "image",
    kinds: Mapping[str, Mapping] | None = None,
) -> PathologyMaps:
    """Sample one image per prompt and map where its words are.

    Words are looked up before anything is sampled, so a bad one costs no work.

    Args:
        pipeline: a `StableDiffusionPipeline`.
        prompts: B reports.
        words: B times the word that names the pathology, or several: their maps are joined by
            their maximum. An empty list means that nothing is to be protected.
        seeds: B seeds, one per image.
        steps, guidance: of the sampler; guidance 1 is none.
        layers: of the U-Net, as in `record_attention`.
        select: `"cas"`, or `"average"` for the mean over a word's tokens.
        cas: keyword arguments of `select_token`, such as `{"features": "grid"}`.
        scale, quantile: preset of `scale_attention`, `None` for stretching to [0, 1] alone, and the
            quantile above which it protects.
        size: `"image"` for maps of the image's size, `"latent"` for that of the latents.
        kinds: further maps of the same sampling, by name: what differs of `select`, `scale` and
            `quantile`, such as `{"average": {"select": "average"}}`.

    Raises:
        ValueError: if lengths differ, an option is unknown, `word_tokens` refuses a word, or a
            word's map has no structure.
        RuntimeError: if numbers overflowed in half precision.
    """
    options = {"select": select, "cas": cas, "scale": scale, "quantile": quantile}
    kinds = {name: _changed(options, changes) for name, changes in (kinds or {}).items()}
    for some in (options, *kinds.values()):
        _check_options(**some, size=size)
    positions = _positions(pipeline, prompts, words)
    tokens = sorted({token for image in positions for word in image for token in word}) or [0]
    conditional = "second_half" if guidance > 1 else "all"
    with record_attention(
        pipeline, conditional=conditional, tokens=tokens, layers=layers
    ) as record:
        latents = sample(pipeline, prompts, seeds=list(seeds), steps=steps, guidance=guidance)
    attention = record.maps
    if not latents.isfinite().all() or not attention.isfinite().all():
        raise RuntimeError(
            f"samples of seeds {seeds[0]} to {seeds[-1]} are not finite in {pipeline.unet.dtype}: "
            "sample in float32 or bfloat16"
        )
    names = [f"image {index}, seed {seed}" for index, seed in enumerate(seeds)]
    result, *others = (
        _combine(pipeline, attention, latents, tokens, positions, names, **some, size=size)
        for some in (options, *kinds.values())
    )
    for name, other in zip(kinds, others, strict=True):
        result.others[name] = other.maps
    return result


def encoded_map(
    pipeline,
    latents: Tensor,
    prompts: Sequence[str],
    words: Sequence[str | Sequence[str]],
    *,
    timesteps: Sequence[int],
    generator: torch.Generator,
    select: str = "cas",
    cas: Mapping | None = None,
    scale: str | None = "literal",
    size: str = "image",
) -> PathologyMaps:
    """Map where the words of a report are in a given image, already encoded to latents.

    As `pathology_map` with all layers and the paper's quantile, and with `attention_on_latents` in
    place of sampling.
    """
    _check_options(select, cas, scale, size)
    positions = _positions(pipeline, prompts, words)
    tokens = sorted({token for image in positions for word in image for token in word}) or [0]
    attention = attention_on_latents(
        pipeline,
        latents,
        prompts,
        timesteps=timesteps,
        generator=generator,
        tokens=tokens,
    )
    names = [f"image {index}" for index in range(len(latents))]
    return _combine(
        pipeline, attention, latents, tokens, positions, names, select, cas, scale, size
    )


@torch.no_grad()
def attention_on_latents(
    pipeline,
    latents: Tensor,
    prompts: Sequence[str],
    *,
    timesteps: Sequence[int],
    generator: torch.Generator,
    tokens: Sequence[int] | None = None,
    layers: Sequence[str] = ("down", "up"),
) -> Tensor:
    """Noise given latents to several timesteps and sum the attention while the U-Net looks at them.

    Args:
        pipeline: a `StableDiffusionPipeline`; of its scheduler only `alphas_cumprod` is used.
        latents: (B, C, h, w) scaled latents of images, as `latent_diffusion.encode` returns.
        prompts: B reports, used without guidance.
        timesteps: training timesteps, each in [0, T): small keeps detail, large only layout.
        generator: draws the noise, on the CPU.
        tokens, layers: as in `record_attention`.

    Returns:
        (B, T, h, w) float32 attention, summed over heads, layers and timesteps.
    """
    prompts = list(prompts)
    if latents.ndim != 4 or len(latents) != len(prompts):
        raise ValueError(
            f"expected latents (B, C, h, w) and B prompts, got {tuple(latents.shape)} and "
            f"{len(prompts)}"
        )
    alphas = pipeline.scheduler.alphas_cumprod
    if not len(timesteps) or not all(0 <= step < len(alphas) for step in timesteps):
        raise ValueError(f"timesteps: expected some in [0, {len(alphas)}), got {list(timesteps)}")
    unet = pipeline.unet
    text, _ = pipeline.encode_prompt(prompts, unet.device, 1, False)
    with record_attention(unet, conditional="all", tokens=tokens, layers=layers) as record:
        for step in timesteps:
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            alpha = float(alphas[step])
            noisy = alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise
            unet(
                noisy.to(unet.device, unet.dtype),
                torch.tensor(step, device=unet.device),
                encoder_hidden_states=text,
            )
    return record.maps


def _changed(options: Mapping, changes: Mapping) -> dict:
    if unknown := set(changes) - set(options):
        raise ValueError(f"kinds: expected changes of {tuple(options)}, got {sorted(unknown)}")
    changed = {**options, **changes}
    return changed if changed["select"] == "cas" else changed | {"cas": None}


def _check_options(
    select: str, cas: Mapping | None, scale: str | None, size: str, quantile: float = 0.7
) -> None:
    if select not in ("cas", "average"):
        raise ValueError(f'select: expected "cas" or "average", got {select!r}')
    if cas and select != "cas":
        raise ValueError(f'cas={dict(cas)}: only used with select="cas", got {select!r}')
    check_cas(**(cas or {}))
    if scale not in GAINS:
        raise ValueError(f"scale: expected one of {tuple(GAINS)}, got {scale!r}")
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile: expected a number in [0, 1], got {quantile}")
    if size not in ("image", "latent"):
        raise ValueError(f'size: expected "image" or "latent", got {size!r}')


def _positions(pipeline, prompts, words) -> list[list[list[int]]]:
    """Token positions of every word of every image."""
    if isinstance(prompts, str) or isinstance(words, str) or len(prompts) != len(words):
        raise ValueError("expected a list of prompts and a list of as many words (or word lists)")
    return [
        [
            word_tokens(pipeline.tokenizer, prompt, word)
            for word in ([some] if isinstance(some, str) else some)
        ]
        for prompt, some in zip(prompts, words, strict=True)
    ]


def _combine(
    pipeline, attention, latents, tokens, positions, names, select, cas, scale, size, quantile=0.7
) -> PathologyMaps:
    """Select per word, upsample, scale, join per image: (B, T, h, w) -> (B, H, W).

    `names` say in an error which image it is about.
    """
    attention = attention.cpu()
    height, width = attention.shape[-2:]
    if size == "image":
        factor = scale_factor(pipeline.vae)
        height, width = height * factor, width * factor
    maps = torch.zeros(len(attention), height, width)
    selections = []
    for image, image_words in enumerate(positions):
        try:
            chosen, table = [], []
            for word in image_words:
                token_maps = attention[image, [tokens.index(token) for token in word]]
                if select == "cas":
                    table.append(select_token(token_maps, word, **(cas or {})))
                    chosen.append(table[-1].map)
                else:
                    chosen.append(average_tokens(token_maps))
            if chosen:
                upsampled = F.interpolate(torch.stack(chosen)[:, None], (height, width),
                                          mode="bilinear", align_corners=False)[:, 0]  # fmt: skip
                scaled = scale_attention(upsampled, preset=scale, quantile=quantile)
                maps[image] = scaled.amax(dim=0)
        except ValueError as error:
            raise ValueError(f"{names[image]}: {error}") from error
        selections.append(tuple(table))
    return PathologyMaps(maps=maps, latents=latents, selections=tuple(selections))
