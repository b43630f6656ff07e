import subprocess
import sys

import pytest
import torch

from medsign_lite.training.processor import keep_freed_memory, training_layout, tune_processor

PROGRAM = """
import resource, sys, torch
from medsign_lite.training.processor import keep_freed_memory
torch.set_num_threads(1)
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(12_000_000).add(1)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(choice):
    done = subprocess.run([sys.executable, "-c", PROGRAM, choice], capture_output=True, text=True,
                          check=True)  # fmt: skip
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library of Linux only")
def test_freed_memory_is_used_again():
    kept, faults = page_faults("keep")
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert faults < page_faults("return")[1] / 2


def test_nothing_happens_on_other_systems(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


def test_tiny_numbers_become_zero():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    torch.set_flush_denormal(False)
    try:
        tiny = torch.full((4,), 1e-38)
        assert (tiny * 0.01 != 0).all()
        tune_processor()
        assert (tiny * 0.01 == 0).all()
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [("cpu", "AVX2", torch.contiguous_format), ("cpu", "AVX512", torch.channels_last),
     ("cpu", "DEFAULT", torch.contiguous_format), ("cuda", "AVX2", torch.channels_last)],
)  # fmt: skip
def test_layout_is_what_the_device_trains_convolutions_fastest_in(
    device, capability, expected, monkeypatch
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert training_layout(device) is expected
