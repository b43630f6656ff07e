import pytest
import torch

from medsign_lite.training.precision import mixed_precision


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_mixed_precision_decides_what_a_convolution_computes_in(precision, dtype):
    convolution, image = torch.nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)
    with mixed_precision("cpu", precision):
        assert convolution(image).dtype == dtype
    assert convolution(image).dtype == torch.float32


def test_mixed_precision_is_automatic_only_where_the_processor_has_the_instructions(monkeypatch):
    for supported in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda value=supported: value)
        with mixed_precision("cpu"):
            assert torch.is_autocast_enabled("cpu") == supported


def test_mixed_precision_refuses_an_unknown_one():
    with pytest.raises(ValueError, match="got 'half'"):
        mixed_precision("cpu", "half")
