"""Training in several processes, on one machine or many, through Hugging Face accelerate.

    accelerate launch --num_processes 4 -m medsign_lite.finetuning --out FOLDER ...
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m -- medsign_lite.finetuning ...

The first is for GPUs, the second for CPUs, where accelerate's own launcher would ask for MPI; its
`--` keeps it from taking our options, such as --start, for its own. Started by neither, there is
one process, and the same code runs. All processes draw the same batch, because their generators
have the same seed; each computes its own part of it, and the gradients are averaged before the
step. So several processes take the steps that one would take, up to the rounding of a sum, and the
batch size means the whole batch however many share it.
"""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn


class Processes:
    """This process among those that train together.

    Args:
        device: to compute on if this process is alone; among several, each gets its own device of
            this kind.

    Raises:
        ValueError: if they were started for another kind of device.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._accelerator = Accelerator()
        self.count = self._accelerator.num_processes
        self.index = self._accelerator.process_index
        self.device = torch.device(device)
        if self.count > 1:
            if self._accelerator.device.type != self.device.type:
                raise ValueError(
                    f"{self.count} processes were started for {self._accelerator.device.type}, "
                    f"training is asked for on {self.device.type}: name the device, or start "
                    "them with ACCELERATE_USE_CPU=true"
                )
            self.device = self._accelerator.device

    def require_one(self, what: str) -> None:
        """Refuse several processes for work that they do not share: each would do, and write, all.

        Raises:
            ValueError: naming the work.
        """
        if self.count > 1:
            raise ValueError(f"{what} runs in one process, {self.count} were started")

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files."""
        return self.index == 0

    def part(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch that all of them have drawn.

        Raises:
            ValueError: if the rows cannot be shared out evenly, which would weigh some more.
        """
        if len(batch) % self.count:
            raise ValueError(
                f"expected a batch that {self.count} processes share evenly, got {len(batch)}"
            )
        return batch.chunk(self.count)[self.index] if self.count > 1 else batch

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes, in one message."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        joined = self._accelerator.reduce(joined, reduction="mean")
        parts = joined.split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, parts, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over the processes of each figure; all must hold the same names."""
        if self.count == 1:
            return values
        own = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        mean = self._accelerator.reduce(own, reduction="mean").tolist()
        return dict(zip(values, mean, strict=True))

    def agree(self, value: float) -> float:
        """The main process's value: clocks differ, and all must stop at the same step."""
        if self.count == 1:
            return value
        own = torch.tensor(value, dtype=torch.float64, device=self.device)
        return float(broadcast(own, from_process=0))

    def wait(self) -> None:
        """Until all have come here, for example to a file that the main one has written."""
        self._accelerator.wait_for_everyone()

    def gather(self, part: Tensor) -> Tensor:
        """The whole of what every process holds a part of, in their order."""
        return part if self.count == 1 else self._accelerator.gather(part)


def descend(
    loss: Tensor, optimiser: torch.optim.Optimizer, processes: Processes | None = None
) -> None:
    """One step down a scalar loss: gradients averaged over the processes and clipped to norm 1.

    Raises:
        RuntimeError: if a gradient is not finite. A step with it would leave no weight that is.
    """
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    if processes is not None:
        processes.average_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
    optimiser.step()
