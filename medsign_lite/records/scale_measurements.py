"""What the gates measure of large data sets and of several processes."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from medsign_lite.data import COLUMNS
from medsign_lite.latent_diffusion import copy_decoder
from medsign_lite.records.gate_measurements import Sample
from medsign_lite.rows import with_interval
from medsign_lite.training.training_state import load_training_state

ROWS = 100_000
ENTRIES = 72  # of the latent cache; fine-tuning keeps 64 of them to measure on

# The system's own account of the process: what getrusage says outlives exec, and so tells of the
# process that started this one where that was larger.
_READ = """
import resource, sys
from pathlib import Path
from medsign_lite.data import read_manifest

def peak():
    status = Path("/proc/self/status")
    if not status.is_file():
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS alone
        return most / 1024 if sys.platform == "darwin" else most
    lines = status.read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

before = peak()
count = len(read_manifest(sys.argv[1], check_files=False))
print(count, peak() / 1024, (peak() - before) / 1024)
"""


def _printed(command: Sequence[str], **options) -> str:
    """What a command prints; if it fails, an error with the end of what it said."""
    run = subprocess.run(command, capture_output=True, text=True, **options)
    if run.returncode:
        raise RuntimeError(f"{command[:4]} exited with {run.returncode}: {run.stderr[-2000:]}")
    return run.stdout


def manifest(sample: Sample) -> dict:
    """Peak memory, in MiB, of a process that reads a manifest of 100,000 rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.csv"
        with path.open("w", encoding="utf-8") as file:
            file.write(",".join(COLUMNS) + "\n")
            for row in range(ROWS):
                report = f"Small left pleural effusion. No pneumothorax. Comparison {row}."
                file.write(f"chest-{row:06d},images/{row:06d}.png,chest,train,{report},"
                           "effusion,effusion,left,\n")  # fmt: skip
        printed = _printed([sys.executable, "-c", _READ, str(path)])
    rows, peak, growth = map(float, printed.split())
    values = {"rows": rows, "peak": peak, "growth": growth}
    return {name: with_interval(values, name) for name in values}


def processes(sample: Sample) -> dict:
    """How far the weights of a decoder fine-tuned by two processes are from those of one.

    Both runs are the command line's, of one step in float32 on the same batch. "difference" is the
    root mean square over the weights, as a share of how far the step has moved them: AdamW takes a
    whole step even where a gradient is nothing but rounding, whose sign is anybody's. Further steps
    would magnify that, because the attacks round (JPEG) and jump (nearest neighbours).
    """
    sample.generated("chest")
    cache = sample.folder / "samples_chest"
    with tempfile.TemporaryDirectory() as folder:
        weights = []
        for count in (1, 2):
            out = Path(folder) / str(count)
            arguments = {
                "cache": cache, "extractor": sample.weights / "extractor",
                "pipeline": sample.weights / "pipeline", "out": out, "modality": "chest",
                "message": 1, "steps": 1, "batch-size": 4, "limit": ENTRIES, "device": "cpu",
                "precision": "float32",
            }  # fmt: skip
            command = [sys.executable]
            if count > 1:
                command += ["-m", "torch.distributed.run", "--standalone"]
                command += [f"--nproc_per_node={count}"]
            command += ["-m", "medsign_lite.finetuning"]
            for name, value in arguments.items():
                command += [f"--{name}", str(value)]
            # torchrun gives each process one thread; with another number here, sums would be
            # split otherwise, and it is processes that are compared.
            environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            _printed(command, env=environment)
            weights.append(load_training_state(out / "training.pt")["decoder"])
    start = copy_decoder(sample.pipeline.vae).state_dict()
    one, two, first = (
        torch.cat([state[name].flatten() for name in start]) for state in (*weights, start)
    )
    moved = float((one - first).square().mean().sqrt())
    values = {"difference": float((one - two).square().mean().sqrt()) / moved, "moved": moved}
    return {name: with_interval(values, name) for name in values}
