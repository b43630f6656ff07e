"""PCA whitening of the extractor's logits (Sec. 2.1), in double precision.

On unmarked images the logits of a trained extractor are biased and correlated, so its false
positives do not follow the binomial law. Whitening removes mean and covariance on a calibration
set. It also rotates: afterwards the embedder it was trained with reads about 50 %.
"""

import torch
from torch import Tensor


def whitening_transform(logits: Tensor, *, floor: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean and matrix such that `(logits - mean) @ matrix.T` is white.

    The covariance is divided by N, so the result does not depend on the number of images (the
    published replica leaves the sum, and its logits shrink as the calibration set grows).

    Args:
        logits: (N, K) on unmarked images, N > K.
        floor: eigenvalues are raised to this fraction of the largest one.

    Returns:
        mean (K,) and matrix (K, K), float64. Rows follow falling eigenvalues; the largest
        component in size of each row is positive, so that the result is unique.

    Raises:
        ValueError: for too few images, numbers that are not finite, or constant logits.
    """
    if logits.ndim != 2 or len(logits) <= logits.shape[1]:
        raise ValueError(
            f"expected logits (N, K) of more images than bits, got {tuple(logits.shape)}"
        )
    if not torch.isfinite(logits).all():
        raise ValueError("logits contain NaN or infinity")
    logits = logits.double()
    mean = logits.mean(dim=0)
    centred = logits - mean
    covariance = centred.T @ centred / len(centred)  # (K, K)
    eigenvalues, vectors = torch.linalg.eigh(covariance)  # rising
    if eigenvalues[-1] <= 0:
        raise ValueError("logits are the same for every image: the extractor reads nothing")
    eigenvalues, rows = eigenvalues.flip(0), vectors.T.flip(0)
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    rows = rows * largest.sign()
    scale = eigenvalues.clamp(min=floor * eigenvalues[0]).rsqrt()
    return mean, scale[:, None] * rows
