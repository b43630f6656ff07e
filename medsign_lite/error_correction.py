"""Error-correcting codes for the message: fewer bits that are read without a mistake.

A watermark's 48 bits are read one by one, some of them wrongly. A code spends some of them on the
others' safety: its payload is smaller, and whole. The extended Golay code carries 12 bits in 24 and
puts right any three errors among them; a message of 48 bits holds two such words. Reading from
logits instead of bits does better still, because doubtful bits give way to certain ones.

A code is linear: which codeword was sent makes no difference, and any message is some codeword plus
a pattern that whoever wrote it knows. So what a code would have brought can be said of every
watermark, after the fact and with the message it has.
"""

from functools import cache

import torch
from torch import Tensor

from medsign_lite.messages import check_message

WORD, PAYLOAD = 24, 12  # bits of a Golay word, and those of them that are free


@cache
def golay_codewords() -> Tensor:
    """All words of the extended Golay code: (4096, 24) in {0, 1}, the first 12 bits the payload's.

    The payloads count upwards in binary. Any two words differ in at least eight bits.
    """
    residues = {square * square % 11 for square in range(11)}
    parity = torch.ones(PAYLOAD, PAYLOAD)
    parity[0, 0] = 0
    for row in range(11):
        for column in range(11):
            parity[row + 1, column + 1] = float((column - row) % 11 not in residues - {0})
    numbers = torch.arange(2**PAYLOAD)[:, None] >> torch.arange(PAYLOAD - 1, -1, -1)
    payload = (numbers % 2).float()
    return torch.cat([payload, (payload @ parity) % 2], dim=1)


def golay_encode(payload: Tensor) -> Tensor:
    """Payload (..., 12 n) in {0, 1} to message (..., 24 n): n words behind each other.

    Raises:
        ValueError: for another number of bits, or values other than 0 and 1.
    """
    if payload.ndim < 1 or payload.shape[-1] % PAYLOAD or not payload.shape[-1]:
        raise ValueError(f"expected a payload of 12 bits a word, got {tuple(payload.shape)}")
    check_message(payload.reshape(-1, payload.shape[-1]), payload.shape[-1])
    number = (payload.unflatten(-1, (-1, PAYLOAD)) * _places(payload)).sum(dim=-1).long()
    return golay_codewords().to(payload)[number].flatten(-2)


def golay_decode(logits: Tensor) -> Tensor:
    """Logits (..., 24 n) to the payload (..., 12 n) in {0, 1} of the likeliest words.

    The likeliest word is the one whose bits the logits favour most in all. Of bits alone, without
    their logits, it is the nearest word; write them as -1 and 1.

    Raises:
        ValueError: for another number of logits.
    """
    if logits.ndim < 1 or logits.shape[-1] % WORD or not logits.shape[-1]:
        raise ValueError(f"expected logits of 24 bits a word, got {tuple(logits.shape)}")
    words = golay_codewords().to(logits)
    favoured = logits.unflatten(-1, (-1, WORD)) @ (2 * words - 1).T  # (..., n, 4096)
    return words[favoured.argmax(dim=-1), :PAYLOAD].flatten(-2)


def _places(payload: Tensor) -> Tensor:
    return 2.0 ** torch.arange(PAYLOAD - 1, -1, -1).to(payload)


def read_whole(logits: Tensor, message: Tensor) -> dict[str, Tensor]:
    """Whether a payload would have been read without a mistake, by what protects it.

    Args:
        logits: (B, K), K divisible by 24.
        message: (K,) in {0, 1}, what was sent.

    Returns:
        (B,) bool each. "plain": all K bits. "repeated": K / 2 bits, each sent twice, the two
        logits added. "golay": K / 2 bits in Golay words.

    Raises:
        ValueError: if logits or message are not as above.
    """
    if logits.ndim != 2 or logits.shape[1] % WORD:
        raise ValueError(f"expected logits (B, K) with K divisible by 24, got {logits.shape}")
    check_message(message, logits.shape[1])
    # As if the word of zeros had been sent: where a bit is read rightly, the logit is below 0.
    turned = logits * (1 - 2 * message.to(logits))
    first, second = turned.chunk(2, dim=1)
    return {
        "plain": (turned < 0).all(dim=1),
        "repeated": (first + second < 0).all(dim=1),
        "golay": (golay_decode(turned) == 0).all(dim=1),
    }
