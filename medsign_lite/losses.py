"""Losses of the decoder's fine-tuning (Sec. 2.2, Eq. 2), each a mean, each said in full.

The paper does not state its norms, means and value range. Here every loss is a mean over images
and pixels of values in [0, 1], so that a weight means the same at every batch and image size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def message_loss(logits: Tensor, message: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Binary cross-entropy of `logits / temperature`, in nats, averaged over images and bits.

    Args:
        logits: (B, K).
        message: (B, K) or (K,) bits in {0, 1}; (K,) is shared by the batch.
        temperature: below 1 demands less of the logits (the published fine-tuning multiplies
            its small whitened logits by 10, a temperature of .1).
    """
    if logits.ndim != 2 or message.shape not in (logits.shape, logits.shape[1:]):
        raise ValueError(
            "expected logits (B, K) and message (B, K) or (K,), got "
            f"{tuple(logits.shape)} and {tuple(message.shape)}"
        )
    target = message.to(logits.dtype).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits / temperature, target)
