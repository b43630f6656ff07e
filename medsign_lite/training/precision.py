"""Mixed precision where the processor computes it fast, float32 elsewhere."""

import torch

PRECISIONS = ("auto", "bfloat16", "float32")


def mixed_precision(device: str | torch.device, precision: str = "auto") -> torch.autocast:
    """An autocast context for one forward pass; bfloat16 needs no loss scaling.

    Args:
        device: where the forward pass runs.
        precision: "auto" takes bfloat16 on CUDA devices and on CPUs with matrix instructions for it
            (AMX), where convolutions run about four times faster than in float32. CPUs that have
            it in their vector instructions alone are slower in it.

    Raises:
        ValueError: for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    device = torch.device(device)
    if precision == "auto":
        fast = {
            "cuda": lambda: torch.cuda.is_bf16_supported(),
            "cpu": torch.cpu._is_amx_tile_supported,
        }.get(device.type, lambda: False)()
    else:
        fast = precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)
