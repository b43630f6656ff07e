"""Several processes take the steps of one: by hand, and with two real ones."""

import os
import subprocess
import sys

import pytest
import torch

from medsign_lite.latent_diffusion import copy_decoder
from medsign_lite.training.processes import Processes, descend
from tests.test_finetuning import tiny_vae
from tests.two_processes import main


@pytest.fixture
def second_of_two():
    """As the second of two processes would see itself; nothing is sent."""
    processes = Processes()
    processes.count, processes.index = 2, 1
    return processes


def test_alone_everything_is_ones_own():
    processes, batch = Processes("cpu"), torch.arange(3)
    assert (processes.count, processes.index, processes.is_main) == (1, 0, True)
    assert processes.part(batch) is batch and processes.gather(batch) is batch
    assert processes.mean({"loss": 0.5}) == {"loss": 0.5}
    assert processes.agree(0.25) == 0.25


def test_part_is_this_processes_rows(second_of_two):
    assert second_of_two.part(torch.arange(6)).tolist() == [3, 4, 5]
    assert not second_of_two.is_main


def test_part_refuses_what_cannot_be_shared_evenly(second_of_two):
    with pytest.raises(ValueError, match="2 processes share evenly, got 5"):
        second_of_two.part(torch.arange(5))


def test_processes_started_for_another_device_are_refused(monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 2)
    with pytest.raises(ValueError, match="2 processes were started for cpu.*on cuda"):
        Processes("cuda")


def test_descend_takes_one_clipped_step():
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    descend(weight.square().sum(), optimiser)  # the gradient (6, 8) is cut to (.6, .8)
    torch.testing.assert_close(weight.detach(), torch.tensor([2.4, 3.2]))


def test_descend_takes_no_step_that_would_leave_nothing_finite():
    weights = [torch.nn.Parameter(torch.tensor([1.0])) for _ in range(2)]
    optimiser = torch.optim.SGD(weights, lr=1.0)
    with pytest.raises(RuntimeError, match="non-finite"):
        descend(weights[0].sum() + (weights[1] - 1).sqrt().sum(), optimiser)
    assert [weight.item() for weight in weights] == [1, 1]


def launch(folder, *arguments):
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               "-m", "tests.two_processes", str(folder), *map(str, arguments)]  # fmt: skip
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one_and_resume_when_one_is_killed(root, tmp_path):
    main(tmp_path / "one")
    result = launch(tmp_path / "two")
    assert result.returncode == 0, result.stderr
    killed = launch(tmp_path / "killed", 3)
    assert killed.returncode != 0
    saved = torch.load(tmp_path / "killed" / "training.pt", weights_only=True)
    assert saved["budget"]["step"] == 2
    result = launch(tmp_path / "killed")
    assert result.returncode == 0, result.stderr
    expected = torch.load(tmp_path / "one" / "weights-0.pt", weights_only=True)
    start = copy_decoder(tiny_vae()).state_dict()
    assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-3
    for path in ("two/weights-0.pt", "two/weights-1.pt", "killed/weights-0.pt"):
        weights = torch.load(tmp_path / path, weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)
