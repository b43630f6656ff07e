"""The running average of weights, worked by hand."""

import copy

import torch
from torch import nn

from medsign_lite.training.averaging import update_average


def test_update_average_by_hand():
    module = nn.Linear(1, 1, bias=False)
    average = copy.deepcopy(module)
    nn.init.constant_(average.weight, 0.0)
    nn.init.constant_(module.weight, 1.0)
    update_average(average, module, step=10, decay=0.9)  # 10 / 20 is less than 0.9
    assert torch.isclose(average.weight, torch.tensor(0.5)).all()
    update_average(average, module, step=990, decay=0.9)  # 990 / 1000 is more
    assert torch.isclose(average.weight, torch.tensor(0.55)).all()


def test_buffers_are_copied_not_averaged():
    module, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    module.num_batches_tracked.fill_(7)
    module.running_mean.fill_(3.0)
    update_average(average, module, step=1)
    assert average.num_batches_tracked == 7 and average.running_mean == 3.0


def test_constant_weights_stay():
    module = nn.Linear(3, 2)
    average = copy.deepcopy(module)
    for step in range(1, 50):
        update_average(average, module, step=step)
    torch.testing.assert_close(average.weight, module.weight)
