import pytest
from torch import nn

from medsign_lite.training.evaluation_mode import evaluation_mode


def test_every_module_is_as_it_was_whatever_happens():
    first, second = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)), nn.Linear(2, 2)
    first[0].eval()
    modules = [*first.modules(), *second.modules()]
    before = [module.training for module in modules]
    with pytest.raises(RuntimeError), evaluation_mode(first, second):
        assert not any(module.training for module in modules)
        raise RuntimeError
    assert [module.training for module in modules] == before == [True, False, True, True]
