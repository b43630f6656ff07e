"""A running average of weights while they are trained, which is what gets measured and shipped."""

import torch
from torch import nn


@torch.no_grad()
def update_average(
    average: nn.Module, module: nn.Module, *, step: int, decay: float = 0.998
) -> None:
    """Move the averaged weights towards the current ones, in place.

    The decay grows with the step, so that the untrained weights of the beginning are soon
    forgotten; a fixed decay would keep them for thousands of steps.

    Args:
        average: a copy of the module made before training.
        module: the one being trained.
        step: optimiser steps taken, from 1.
        decay: of one step, once it has been reached.
    """
    now = min(decay, step / (step + 10))
    pairs = zip(average.parameters(), module.parameters(), strict=True)
    for mean, weight in pairs:
        mean.lerp_(weight.to(mean.dtype), 1 - now)
    for mean, value in zip(average.buffers(), module.buffers(), strict=True):
        mean.copy_(value)
