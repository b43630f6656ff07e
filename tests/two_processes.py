"""What test_processes.py starts, alone or in two processes: a decoder's fine-tuning, tiny.

    python -m tests.two_processes FOLDER [STEP]

With a step, the last process is killed there, as if its machine had failed.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from medsign_lite import finetuning
from medsign_lite.finetuning import finetune_step, fit
from medsign_lite.latent_diffusion import copy_decoder
from medsign_lite.perceptual import perceptual_loss
from medsign_lite.training.processes import Processes
from tests.test_finetuning import MESSAGE, WEIGHTS, tiny_cache, tiny_extractor, tiny_vae


def main(folder: str, fatal: int | None = None) -> None:
    processes, taken = Processes(), 0

    def step(*arguments, **options):
        nonlocal taken
        taken += 1
        if taken == fatal and processes.index == processes.count - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return finetune_step(*arguments, **options)

    finetuning.finetune_step = step
    vae = tiny_vae()
    decoder = fit(
        copy_decoder(vae), tiny_cache(vae), MESSAGE, tiny_extractor(), WEIGHTS, folder,
        perceptual=perceptual_loss(), steps=5, batch_size=4, held_out=4, save_seconds=0,
        precision="float32",
    )  # fmt: skip
    torch.save(decoder.state_dict(), Path(folder) / f"weights-{processes.index}.pt")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
