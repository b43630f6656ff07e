"""Optimisers of the decoder's fine-tuning: the paper's AdamW, and one that learns faster.

Each of the decoder's convolutions is a matrix, and the gradient of so small a change as a watermark
lies in few of its directions. AdamW scales every weight by itself and so follows those few; Muon
(Jordan et al., 2024) makes all directions of the update equally long.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

OPTIMISERS = ("adamw", "muon")


def trained_parameters(network: nn.Module, layers: Sequence[str] = ()) -> list[nn.Parameter]:
    """Leave only some layers of a network to be trained; all others are frozen.

    Args:
        network: its parameters are made to require gradients, or not to.
        layers: names of modules, such as "up_blocks.2"; what stands before and after such a name
            does not matter. None: all layers.

    Raises:
        ValueError: for a name that no parameter has.
    """
    names = [name for name, _ in network.named_parameters()]
    for layer in layers:
        if not any(_within(name, layer) for name in names):
            parts = sorted({".".join(name.split(".")[:3]) for name in names})
            raise ValueError(f"no layer {layer!r} to train; there are {', '.join(parts)}")
    trained = []
    for name, parameter in network.named_parameters():
        chosen = not layers or any(_within(name, layer) for layer in layers)
        parameter.requires_grad_(chosen)
        trained += [parameter] if chosen else []
    return trained


def _within(parameter: str, layer: str) -> bool:
    return f".{layer}." in f".{parameter}."


def decoder_optimiser(
    parameters: Iterable[nn.Parameter], name: str = "adamw", *, learning_rate: float
) -> torch.optim.Optimizer:
    """An optimiser without weight decay: the decoder starts where it should stay.

    Args:
        parameters: in the memory format that they are trained in.
        name: "adamw", or "muon", which is `MuonOfKernels`.

    Raises:
        ValueError: for another name.
    """
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    if name == "muon":
        return MuonOfKernels(parameters, learning_rate=learning_rate)
    raise ValueError(f"expected an optimiser among {OPTIMISERS}, got {name!r}")


class MuonOfKernels(torch.optim.Optimizer):
    """Muon for the convolutions' kernels, AdamW for norms, biases and the three rows of colours.

    Torch's Muon takes matrices only, so it is given a view of each kernel with one row per output
    channel. Its updates are scaled to the size of AdamW's: one learning rate fits both.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, learning_rate: float) -> None:
        every = list(parameters)
        kernels = [p for p in every if p.ndim == 4 and len(p) > 3]
        others = [p for p in every if not (p.ndim == 4 and len(p) > 3)]
        groups = [{"params": group} for group in (kernels, others)]
        super().__init__(groups, {"lr": learning_rate})
        self._kernels = kernels
        self._matrices = [nn.Parameter(_matrix(kernel.detach())) for kernel in kernels]
        for kernel, matrix in zip(kernels, self._matrices, strict=True):
            assert kernel.data_ptr() == matrix.data_ptr(), "a copy would be trained instead"
        options = {"lr": learning_rate, "weight_decay": 0.0}
        self._parts = (
            torch.optim.Muon(self._matrices, adjust_lr_fn="match_rms_adamw", **options),
            torch.optim.AdamW(others, **options),
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step at the learning rates that the groups say."""
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else _matrix(kernel.grad)
        for group, part in zip(self.param_groups, self._parts, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()

    def state_dict(self) -> dict:
        """Of both parts, in their order."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on where `state_dict` was taken."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


def _matrix(kernel: Tensor) -> Tensor:
    """(out, in, h, w) to (out, in * h * w), a view of either memory format."""
    if kernel.is_contiguous():
        return kernel.flatten(1)
    return kernel.permute(0, 2, 3, 1).flatten(1)
