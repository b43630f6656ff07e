"""Settings of the CPU that make training and sampling faster."""

import ctypes
import sys

import torch

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def tune_processor() -> None:
    """Keep freed memory, and take numbers below 1e-38 for zero.

    Such numbers appear in gradients once a softmax is sure of itself, and x86 processors compute
    with them ten times slower than with others.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next tensor instead of returning it.

    A training step frees and asks for the same large blocks again and again. By default glibc
    gives each back to the system, which must then fill it with zeros anew, page by page: a third
    of the time of a step on two cores went there. The process holds its peak memory afterwards.

    Returns:
        whether that was done: on Linux with glibc it is, elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    done = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 2**26)]
    return all(done)


def training_layout(device: str | torch.device) -> torch.memory_format:
    """How networks and images lie in memory while convolutions are trained on a device.

    Channels last, which graphics processors and AVX-512 prefer. Without AVX-512 the gradients of a
    convolution's weights take twice as long in it, and what is saved elsewhere is little.
    """
    if torch.device(device).type != "cpu" or "512" in torch.backends.cpu.get_cpu_capability():
        return torch.channels_last
    return torch.contiguous_format
