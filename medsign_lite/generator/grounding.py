"""Token grounding: while a denoiser is trained, a finding's words attend to where the finding is.

The token-wise loss of TokenCompose (Wang et al., CVPR 2024): of all the attention that a token
gets, the share outside its finding's mask, squared. The denoising loss alone leaves a word free to
look anywhere that helps to draw what it names, and a small model uses that freedom.

It needs masks, which the phantoms have. Models that were trained without them, such as RoentGen,
localise as far as their size and the length of their training let them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from medsign_lite.attention_layers import find_cross_attention
from medsign_lite.data import Record, load_mask
from medsign_lite.generator.report_supervision import report_tokens
from medsign_lite.images import central_crop

UNGROUNDED = -1  # a token that belongs to no finding with a mask


def read_groundings(
    records: Sequence[Record], tokenizer: CLIPTokenizer, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Which finding each token names, and where the findings are.

    Args:
        size: (h, w) of the latents, of the central part of each image that has their proportions.

    Returns:
        owners (N, T): the number of the finding in its record that a token belongs to, and
        `UNGROUNDED` where there is none or it has no mask; regions (N, F, h, w) bool: the latents
        that see each finding, F being the most findings of a record, at least 1.
    """
    most = max([1, *(len(record.findings) for record in records)])
    owners = torch.full((len(records), tokenizer.model_max_length), UNGROUNDED)
    regions = torch.zeros(len(records), most, *size, dtype=torch.bool)
    for row, region, record in zip(owners, regions, records, strict=True):
        for number, (word, path) in enumerate(zip(record.words, record.masks, strict=True)):
            if path is None:
                continue
            # The maximum, because a microaneurysm is a small part of a latent.
            mask = central_crop(load_mask(path), size)
            region[number] = F.adaptive_max_pool2d(mask[None], size)[0] > 0.5
            own = report_tokens(tokenizer, record, word)
            if own and (first := int(row[own[0]])) != UNGROUNDED:
                region[first] |= region[number]  # two findings of one word: it may look at either
            else:
                row[own] = number
    return owners, regions


@contextmanager
def attention_with_gradients(
    unet: nn.Module, layers: Sequence[str] = ("down", "up")
) -> Iterator[list[Tensor]]:
    """The cross-attention of U-Net calls made inside the `with` block, to be differentiated.

    `record_attention` keeps sums over many calls without gradients; this keeps one call's
    attention with them, and is for training.

    Args:
        unet: whose queries and keys are seen by hooks, so that any attention processor will do.
        layers: as in `record_attention`.

    Yields:
        A list to which every layer adds its (B, positions, T) float32 attention, a mean over heads.
    """
    seen: list[Tensor] = []
    handles = []

    def hook(attention: nn.Module) -> None:
        pending: dict[str, Tensor] = {}

        def note(role: str, projected: Tensor) -> None:
            pending[role] = projected.float().unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            if len(pending) == 2:
                with torch.autocast(projected.device.type, enabled=False):
                    query, key = pending.pop("query"), pending.pop("key")  # (B, heads, ., D)
                    logits = query @ key.transpose(2, 3) * attention.scale
                    seen.append(logits.softmax(dim=-1).mean(dim=1))

        for role, projection in (("query", attention.to_q), ("key", attention.to_k)):
            handles.append(
                projection.register_forward_hook(
                    lambda module, inputs, output, role=role: note(role, output)
                )
            )

    for name in find_cross_attention(unet, layers):
        hook(unet.get_submodule(name))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def summed_maps(attention: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """(B, T, h, w): attention summed over layers, each upsampled as `record_attention` does.

    Args:
        attention: of `attention_with_gradients`; each layer's positions are those of a grid that
            is (h, w) divided by one power of two.
        size: (h, w) of the latents.
    """
    total = 0
    for layer in attention:
        shrink = round((size[0] * size[1] / layer.shape[1]) ** 0.5)
        grid = (size[0] // shrink, size[1] // shrink)
        maps = layer.transpose(1, 2).unflatten(-1, grid)
        total = total + F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return total


def grounding_loss(maps: Tensor, owners: Tensor, regions: Tensor) -> Tensor:
    """Mean over grounded tokens of (1 - share of the token's attention inside its region)^2.

    Args:
        maps: (B, T, h, w), non-negative.
        owners: (B, T) as `read_groundings` returns; 0 is returned where all are `UNGROUNDED`.
        regions: (B, F, h, w) bool.
    """
    rows, tokens = (owners != UNGROUNDED).nonzero(as_tuple=True)
    if not len(rows):
        return maps.sum() * 0
    attended = maps[rows, tokens]  # (grounded, h, w)
    inside = regions[rows, owners[rows, tokens]]
    share = (attended * inside).sum(dim=(1, 2)) / attended.sum(dim=(1, 2))
    return (1 - share).square().mean()
