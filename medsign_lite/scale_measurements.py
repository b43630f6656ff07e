"""What the gates measure of large data sets and of several processes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from medsign_lite.data import COLUMNS
from medsign_lite.gate_measurements import Sample, figure
from medsign_lite.training_state import load_training_state

ROWS = 100_000
ENTRIES = 72  # of the latent cache; fine-tuning keeps 64 of them to measure on

_READ = """
import resource, sys
from medsign_lite.data import read_manifest
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = len(read_manifest(sys.argv[1], check_files=False))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(count, peak / 1024, (peak - before) / 1024)
"""


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
        run = subprocess.run(
            [sys.executable, "-c", _READ, str(path)], capture_output=True, text=True, check=True
        )
    rows, peak, growth = map(float, run.stdout.split())
    values = {"rows": rows, "peak": peak, "growth": growth}
    return {name: figure(values, name) for name in values}


def processes(sample: Sample) -> dict:
    """Largest difference between the weights of a decoder fine-tuned by two processes and by one.

    Both runs are the command line's, of a few steps in float32 with the same batch.
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
                "message": 1, "steps": 4, "batch-size": 4, "limit": ENTRIES, "device": "cpu",
                "precision": "float32",
            }  # fmt: skip
            command = [sys.executable]
            if count > 1:
                command += ["-m", "torch.distributed.run", "--standalone"]
                command += [f"--nproc_per_node={count}"]
            command += ["-m", "medsign_lite.finetuning"]
            for name, value in arguments.items():
                command += [f"--{name}", str(value)]
            environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            weights.append(load_training_state(out / "training.pt")["decoder"])
    pairs = [(weights[0][name], weights[1][name]) for name in weights[0]]
    values = {
        "difference": max(float((one - two).abs().max()) for one, two in pairs),
        "largest": max(float(one.abs().max()) for one, _ in pairs),
    }
    return {name: figure(values, name) for name in values}
