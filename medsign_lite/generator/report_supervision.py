"""What a report and its masks tell a denoiser in training beyond the image: where and which side.

A finding covers a few latents of an image and its side is one word of a report. Neither is heeded
early when the noise's error is all that counts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from medsign_lite.data import SIDES, Record
from medsign_lite.localisation import WordCutOff, WordNotFound, word_tokens
from medsign_lite.map_variants import MIRROR

IGNORED = -100  # a token that belongs to no finding


def emphasised_places(records: Sequence[Record], regions: Tensor) -> Tensor:
    """Which latents (N, h, w) see a record's findings, or would if they were on the other side.

    The side that the report does not name counts as much: were the findings alone to weigh more,
    drawing one where none belongs would be the cheaper mistake, and a network in doubt about the
    side would draw both. Nothing is emphasised where a record has no mask.

    Args:
        regions: (N, F, h, w) bool as `read_groundings` returns.
    """
    places = regions.any(dim=1)
    sides = (found.flip(MIRROR[r.modality]) for found, r in zip(places, records, strict=True))
    return places | torch.stack(list(sides))


def read_sides(records: Sequence[Record], tokenizer: CLIPTokenizer) -> Tensor:
    """What each token (N, T) is to know: the number in SIDES of the finding whose word it belongs
    to, and IGNORED where it belongs to none, or to findings of different sides."""
    sides = torch.full((len(records), tokenizer.model_max_length), IGNORED)
    for row, record in zip(sides, records, strict=True):
        told: dict[str, set[int]] = {}
        for word, side in zip(record.words, record.sides, strict=True):
            told.setdefault(word, set()).add(SIDES.index(side))
        for word, numbers in told.items():
            own = report_tokens(tokenizer, record, word)
            row[own] = numbers.pop() if len(numbers) == 1 else IGNORED
    return sides


def report_tokens(tokenizer: CLIPTokenizer, record: Record, word: str) -> list[int]:
    """Positions of a finding's word in the record's report; none where it is empty or cut off.

    Raises:
        ValueError: naming the record, and not its report, if the word is not in it.
    """
    try:
        return word_tokens(tokenizer, record.report, word) if word else []
    except WordCutOff:  # nothing to learn
        return []
    except WordNotFound:
        raise ValueError(
            f"record {record.id!r}: its report does not have {word!r} as a whole word"
        ) from None


def side_loss(hidden: Tensor, head: nn.Linear, sides: Tensor) -> Tensor:
    """Cross-entropy, in nats, of the side that a linear layer reads from a finding's tokens.

    Args:
        hidden: (B, T, C) of the text encoder.
        head: C to len(SIDES).
        sides: (B, T) as `read_sides` returns.
    """
    known = sides != IGNORED
    if not known.any():
        return hidden.sum() * 0
    return F.cross_entropy(head(hidden[known]), sides[known])
