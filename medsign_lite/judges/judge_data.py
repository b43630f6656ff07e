"""Phantoms in memory, as the judges are trained on them, and the disturbances they must bear."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from medsign_lite.data import FUNDUS_FINDINGS, Record, load_mask
from medsign_lite.images import load_image, resize, to_bytes
from medsign_lite.judges.judge_networks import JudgeConfig

# Which of a finding's two sides a word names: first (right, superior), second, or both.
_SIDE_TARGETS = {"right": (1, 0), "left": (0, 1), "superior": (1, 0), "inferior": (0, 1),
                 "bilateral": (1, 1)}  # fmt: skip
_EYE = re.compile(r"\b(right|left)\s+(?:eye|fundus|retina|optic)\b|\b(OD|OS)\b", re.IGNORECASE)


@dataclass(kw_only=True)
class Phantoms:
    """A split of a manifest in memory, one byte per pixel and colour.

    Attributes:
        images: (N, S, S, 3) uint8.
        masks: (N, S, S) int16; bit f is set where finding f is.
        presence: (N, F) in {0, 1}.
        sides: (N, F, 2) in {0, 1}; NaN where a finding is present and its side is not stated.
        eye: (N,) 1 for a right eye, 0 for a left one, NaN where the report names none.
        fundus: (N,) bool.
        findings: the F names.
    """

    images: Tensor
    masks: Tensor
    presence: Tensor
    sides: Tensor
    eye: Tensor
    fundus: Tensor
    findings: tuple[str, ...]

    @classmethod
    def load(cls, records: Sequence[Record], config: JudgeConfig, *, progress: bool = False):
        """Read the images and masks of records, resized to the judge's size where they differ."""
        if not records:
            raise ValueError("expected at least one record to load, got none")
        count, size, findings = len(records), (config.size, config.size), config.findings
        data = cls(
            images=torch.zeros(count, *size, 3, dtype=torch.uint8),
            masks=torch.zeros(count, *size, dtype=torch.int16),
            presence=torch.zeros(count, len(findings)),
            sides=torch.zeros(count, len(findings), 2),
            eye=torch.tensor([_eye(record) for record in records]),
            fundus=torch.tensor([record.modality == "fundus" for record in records]),
            findings=findings,
        )
        for row, record in enumerate(tqdm(records, desc="phantoms", disable=not progress)):
            image = load_image(record.image)
            data.images[row] = to_bytes(image if image.shape[1:] == size else resize(image, size))
            for name, side, path in zip(record.findings, record.sides, record.masks, strict=True):
                if name not in findings:
                    continue
                index = findings.index(name)
                data.presence[row, index] = 1
                target = _SIDE_TARGETS.get(side, (float("nan"),) * 2)
                data.sides[row, index] = torch.tensor(target, dtype=torch.float32)
                if path is not None:
                    mask = load_mask(path)
                    mask = mask if mask.shape == size else resize(mask[None], size)[0]
                    data.masks[row] |= (mask >= 0.5).to(torch.int16) << index
        return data

    def __len__(self) -> int:
        return len(self.images)

    def batch(
        self,
        rows: Tensor,
        *,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Chosen rows as floats, disturbed (see `disturb`) if a generator is given.

        Returns:
            "image" (B, 3, S, S) in [0, 1], "masks" (B, F, S, S) in {0, 1}, "presence" (B, F),
            "sides" (B, F, 2) and "eye" (B,).
        """
        image = self.images[rows].to(device).permute(0, 3, 1, 2).float() / 255
        planes = self.masks[rows, None].to(device)  # (B, 1, S, S), a bit per finding
        if generator is not None:
            image, planes = disturb(image, planes, generator=generator)
        bits = torch.arange(len(self.findings), dtype=torch.int16, device=device)[:, None, None]
        labels = {
            name: getattr(self, name)[rows].to(device) for name in ("presence", "sides", "eye")
        }
        return {"image": image, "masks": (planes >> bits & 1).float(), **labels}

    def asked(self, finding: str) -> Tensor:
        """(N,) bool: the images of the modality to which a finding belongs."""
        return self.fundus if finding in FUNDUS_FINDINGS else ~self.fundus


def _eye(record: Record) -> float:
    found = _EYE.search(record.report) if record.modality == "fundus" else None
    return float("nan") if found is None else float(found[0][:5].lower() in ("right", "od"))


def disturb(image: Tensor, labels: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change images in ways that leave their findings what they are.

    Movement (up to 4 % and 5 degrees), exposure, contrast and gamma; then a loss of detail, as an
    autoencoder causes, and noise of every coarseness, as a watermark is.

    Args:
        image: (B, 3, S, S) in [0, 1].
        labels: (B, C, S, S) integers up to 2**24 that move with the image.
        generator: a CPU generator.

    Returns:
        The same shapes, types and ranges.
    """
    count, _, side, _ = image.shape

    def draw(low: float, high: float, *shape: int) -> Tensor:
        values = torch.rand(count, *shape, generator=generator) * (high - low) + low
        return values.to(image.device)

    def moved(values: Tensor, mode: str) -> Tensor:
        padding = "border" if mode == "bilinear" else "zeros"
        return F.grid_sample(values, grid, mode, padding_mode=padding, align_corners=False)

    angle, zoom = draw(-0.09, 0.09), draw(0.94, 1.06)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    affine = torch.cat([turn * zoom.view(-1, 1, 1), draw(-0.08, 0.08, 2, 1)], dim=2)
    grid = F.affine_grid(affine, [count, 3, side, side], align_corners=False)
    image, labels = moved(image, "bilinear"), moved(labels.float(), "nearest").to(labels.dtype)
    image = image + draw(-0.4, 0.4, 1, 1, 1) * image * (1 - image)  # like a gamma of 0.7 to 1.4
    image = (image - 0.5) * draw(0.85, 1.15, 1, 1, 1) + draw(0.44, 0.56, 1, 1, 1)
    coarse = int(torch.randint(side // 2, side + 1, (1,), generator=generator))
    soft, sharp = image.tensor_split(2)  # half of the batch loses detail
    soft = F.interpolate(resize(soft, (coarse, coarse)), size=(side, side), mode="bilinear")
    image = torch.cat([soft, sharp])
    grain = int(torch.randint(side // 8, side, (1,), generator=generator))
    for channels, scale in ((1, side), (3, grain)):
        noise = torch.randn(count, channels, scale, scale, generator=generator).to(image.device)
        noise = F.interpolate(noise, size=(side, side), mode="bilinear")
        image = image + noise * draw(0, 0.025, 1, 1, 1)
    return image.clamp(0, 1), labels
