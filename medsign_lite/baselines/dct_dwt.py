"""DCT-DWT: a classical watermark in the low frequencies of the image itself, a row of Table 1.

One level of the Haar wavelet halves the image; its coarse band is cut into blocks of 4 x 4 and each
block goes through a discrete cosine transform. One coefficient of a block carries one bit, by
quantisation index modulation (Chen & Wornell, IEEE Trans. Inf. Theory 2001): even multiples of half
a step say 0, odd ones 1. Bits repeat over the blocks, and reading averages what the blocks say.

Nothing is learnt, and nothing finds the grid again after a crop, a rotation or a resize.
"""

from dataclasses import dataclass

import numpy as np
import pywt
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from medsign_lite.images import LUMA, check_image
from medsign_lite.messages import check_message

BLOCK = 4  # coefficients of the coarse band, hence 8 pixels: the grid of JPEG
# A plane of the image: what reads it from (R, G, B), and what to add to (R, G, B) to raise it by 1
# and leave the other two planes of YUV (ITU-R BT.601) as they are.
PLANES = {
    "luma": (LUMA, (1.0, 1.0, 1.0)),
    "chroma": ((-0.147, -0.289, 0.436), (0.0, -0.395, 2.032)),
}


@dataclass(frozen=True, kw_only=True)
class DctDwt:
    """A watermark of `bits` bits in every 8 x 8 pixels.

    step: distance of the lattice points of one bit, in [0, 1] units; PSNR falls by 6 dB where it
    doubles. plane: "luma", or "chroma", the U plane, where the packages that are commonly compared
    with write. There it survives only in a colour file: saved as a grey one, which is what a
    radiograph is, an image has no chroma left and nothing can be read.
    """

    bits: int = 48
    step: float = 0.25
    plane: str = "luma"

    def __post_init__(self) -> None:
        if self.bits < 1:
            raise ValueError(f"bits: expected at least 1, got {self.bits}")
        if not self.step > 0:
            raise ValueError(f"step: expected a positive number, got {self.step}")
        if self.plane not in PLANES:
            raise ValueError(f"plane: expected one of {tuple(PLANES)}, got {self.plane!r}")

    def embed(self, image: Tensor, message: Tensor) -> Tensor:
        """Write a message (K,) or (B, K) into images (B, 3, H, W) in [0, 1]; not clamped."""
        check_message(message, self.bits)
        coefficients, bands, size = self._transform(image)
        carrier = coefficients[..., 0, 1]  # (B, rows, columns), half a period of a horizontal wave
        sent = np.broadcast_to(message.cpu().numpy(), (len(image), self.bits))
        offset = self._bits_of(carrier, sent) / 2
        lattice = (np.round(carrier / self.step - offset) + offset) * self.step
        coefficients[..., 0, 1] = lattice
        plane = self._restore(coefficients, bands, size)
        change = torch.from_numpy(plane).to(image) - self._plane(image)
        return image + change[:, None] * image.new_tensor(PLANES[self.plane][1])[:, None, None]

    def extract(self, image: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W) in [0, 1]: 1 and -1 where all blocks agree."""
        carrier = self._transform(image)[0][..., 0, 1]
        says = -np.cos(2 * np.pi * carrier / self.step).reshape(len(image), -1)  # (B, blocks)
        if says.shape[1] < self.bits:
            raise ValueError(
                f"{self.bits} bits need as many blocks of {2 * BLOCK} x {2 * BLOCK} pixels, "
                f"got {tuple(image.shape[-2:])} pixels"
            )
        numbers = np.arange(says.shape[1]) % self.bits
        means = [says[:, numbers == bit].mean(axis=1) for bit in range(self.bits)]
        return torch.from_numpy(np.stack(means, axis=1)).float()

    def _plane(self, image: Tensor) -> Tensor:
        check_image(image, in_range=False)
        return (image * image.new_tensor(PLANES[self.plane][0])[:, None, None]).sum(dim=1)

    def _transform(self, image: Tensor) -> tuple[np.ndarray, tuple, tuple[int, int]]:
        """Blocks (B, rows, columns, 4, 4) of coefficients, the wavelet's bands, and the size."""
        plane = self._plane(image).double().cpu().numpy()  # (B, H, W)
        coarse, details = pywt.dwt2(plane, "haar")
        rows, columns = (side // BLOCK for side in coarse.shape[1:])
        blocks = coarse[:, : rows * BLOCK, : columns * BLOCK]
        blocks = blocks.reshape(-1, rows, BLOCK, columns, BLOCK).swapaxes(2, 3)
        return dctn(blocks, axes=(-2, -1), norm="ortho"), (coarse, details), plane.shape[1:]

    def _restore(self, coefficients: np.ndarray, bands: tuple, size: tuple[int, int]) -> np.ndarray:
        coarse, details = bands
        blocks = idctn(coefficients, axes=(-2, -1), norm="ortho").swapaxes(2, 3)
        rows, columns = blocks.shape[1] * BLOCK, blocks.shape[3] * BLOCK
        coarse[:, :rows, :columns] = blocks.reshape(-1, rows, columns)
        return pywt.idwt2((coarse, details), "haar")[:, : size[0], : size[1]]

    def _bits_of(self, carrier: np.ndarray, message: np.ndarray) -> np.ndarray:
        """The bit (B, rows, columns) that each block carries: they repeat, row by row."""
        count = carrier.shape[1] * carrier.shape[2]
        return message[:, np.arange(count) % self.bits].reshape(carrier.shape)
