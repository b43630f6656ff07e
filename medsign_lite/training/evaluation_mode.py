"""Reading networks as they will be used, in the middle of their training."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(*networks: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode inside the `with` block; afterwards each module is as it was.

    Each by itself: some may be in evaluation mode on purpose, as those are that are kept frozen.
    """
    modes = {module: module.training for network in networks for module in network.modules()}
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
