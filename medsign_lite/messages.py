"""Messages: the bits that a watermark carries.

A message is a float tensor of zeros and ones, (K,) or (B, K), so that it goes straight into a
binary cross-entropy. As text it is a string of "0" and "1", first bit first.
"""

import torch
from torch import Tensor


def random_message(bits: int = 48, *, generator: torch.Generator) -> Tensor:
    """Draw one message, every bit a fair coin.

    Args:
        bits: K, at least 1.
        generator: a CPU generator; the same seed gives the same message on every device.

    Returns:
        (K,) float32 in {0, 1}, on the CPU.
    """
    return random_messages(1, bits, generator=generator)[0]


def random_messages(count: int, bits: int = 48, *, generator: torch.Generator) -> Tensor:
    """Draw `count` independent messages: (count, K) float32 in {0, 1}, on the CPU."""
    if count < 1 or bits < 1:
        raise ValueError(f"expected at least one message of at least one bit, got {count}, {bits}")
    return torch.randint(0, 2, (count, bits), generator=generator).float()


def check_message(message: Tensor, bits: int) -> None:
    """Refuse anything that is not one or several messages of `bits` bits.

    Args:
        message: (K,) or (B, K), every value 0 or 1.
        bits: K.

    Raises:
        ValueError: if it is no tensor, has another length, or values other than 0 and 1.
    """
    if not isinstance(message, Tensor):
        raise ValueError(
            f"expected a message tensor ({bits},) or (B, {bits}), got {type(message).__name__}; "
            "message_from_string reads text"
        )
    if message.ndim not in (1, 2) or message.shape[-1] != bits:
        raise ValueError(
            f"expected a message of {bits} bits, ({bits},) or (B, {bits}), "
            f"got {tuple(message.shape)}"
        )
    if not ((message == 0) | (message == 1)).all():
        other = message[(message != 0) & (message != 1)].flatten()[0].item()
        raise ValueError(f"expected bits 0 and 1 in the message, got {other:g}")


def message_to_string(message: Tensor) -> str:
    """Write a message (K,) in {0, 1} as text.

    Example:
        >>> message_to_string(torch.tensor([1.0, 0.0, 1.0]))
        '101'
    """
    if message.ndim != 1:
        raise ValueError(f"expected one message (K,), got {tuple(message.shape)}")
    check_message(message, message.shape[0])
    return "".join(str(int(bit)) for bit in message.tolist())


def message_from_string(text: str, *, bits: int = 48) -> Tensor:
    """Read a message written as "0" and "1"; spaces and underscores may group the bits.

    Args:
        text: `bits` characters "0" or "1".
        bits: K, the length expected.

    Returns:
        (K,) float32 in {0, 1}.

    Raises:
        ValueError: if another character or another number of bits is found; the message itself is
            not quoted: whoever knows it can forge the mark.

    Example:
        >>> message_from_string("1010", bits=4)
        tensor([1., 0., 1., 0.])
    """
    if not isinstance(text, str):
        raise ValueError(f"expected a string of {bits} bits, got {type(text).__name__}")
    digits = ungroup(text)
    for place, character in enumerate(text, start=1):
        if ungroup(character) not in ("0", "1", ""):
            raise ValueError(
                f"expected only 0 and 1 in the message, got {character!r} as character {place}"
            )
    if len(digits) != bits:
        raise ValueError(f"expected a message of {bits} bits, got {len(digits)}")
    return torch.tensor([float(digit) for digit in digits])


def read_message(text: str, *, bits: int) -> Tensor:
    """A message (K,) from its bits, or, if `text` is a shorter number, drawn from that seed."""
    if text.isdecimal() and len(text) < min(bits, 16):
        return random_message(bits, generator=torch.Generator().manual_seed(int(text)))
    return message_from_string(text, bits=bits)


def ungroup(text: str) -> str:
    """A message as text, without the spaces and underscores that may group its bits."""
    return "".join(text.replace("_", " ").split())


def check_one_message_per_image(message: Tensor, image: Tensor, bits: int) -> None:
    """Raise a ValueError unless message is (B, bits) for an image (B, ...)."""
    if message.shape != (len(image), bits):
        raise ValueError(
            f"expected a message ({len(image)}, {bits}), one row per image, "
            f"got {tuple(message.shape)}"
        )
