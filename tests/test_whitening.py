import pytest
import torch

from medsign_lite.whitening import whitening_transform


def correlated(count, bits=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(bits, bits, generator=generator)
    return torch.randn(count, bits, generator=generator) @ mixing + 3.0


def white(logits, mean, matrix):
    return (logits.double() - mean) @ matrix.T


def test_whitening_by_hand():
    """Two independent logits with variances 16 and 4: axes kept, divided by 4 and 2."""
    logits = torch.tensor([[5.0, 2.0], [5.0, -2.0], [-3.0, 2.0], [-3.0, -2.0]])
    mean, matrix = whitening_transform(logits)
    assert mean.tolist() == [1.0, 0.0]
    assert torch.allclose(matrix, torch.tensor([[0.25, 0.0], [0.0, 0.5]], dtype=torch.float64))


def test_whitened_logits_have_zero_mean_and_identity_covariance():
    logits = correlated(500)
    result = white(logits, *whitening_transform(logits))
    assert torch.allclose(result.mean(dim=0), torch.zeros(6).double(), atol=1e-10)
    assert torch.allclose(result.T @ result / 500, torch.eye(6).double(), atol=1e-10)


def test_whitening_does_not_depend_on_the_number_of_images():
    logits = correlated(300)
    once, thrice = whitening_transform(logits), whitening_transform(logits.repeat(3, 1))
    assert torch.allclose(once[1], thrice[1], atol=1e-9)


def test_whitening_has_a_fixed_sign_and_order():
    logits = correlated(400)
    mean, matrix = whitening_transform(logits)
    largest = matrix.gather(1, matrix.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()
    norms = matrix.norm(dim=1)  # 1 / sqrt(eigenvalue)
    assert (norms[1:] >= norms[:-1]).all()
    turned = whitening_transform(logits.flip(0))
    assert torch.allclose(matrix, turned[1], atol=1e-9)


def test_whitening_floors_a_direction_without_variance():
    logits = correlated(200)
    logits[:, 5] = logits[:, 4]
    matrix = whitening_transform(logits, floor=1e-4)[1]
    assert torch.isfinite(matrix).all()
    norms = matrix.norm(dim=1)
    assert norms.max() / norms.min() <= 100 * (1 + 1e-6)  # sqrt(1 / floor)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(4, 4), r"more images than bits, got \(4, 4\)"),
        (torch.full((9, 4), torch.nan), "NaN"),
        (torch.ones(9, 4), "the same for every image"),
    ],
    ids=["too few", "not finite", "constant"],
)
def test_whitening_refuses_what_it_cannot_whiten(logits, message):
    with pytest.raises(ValueError, match=message):
        whitening_transform(logits)
