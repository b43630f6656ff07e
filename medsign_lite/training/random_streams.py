"""Random numbers that can be drawn again alone."""

import hashlib

import torch


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator of its own for each name.

    What is measured in parts must not depend on which parts ran before, so each part draws from a
    stream that its name and the seed decide.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
