"""When to make the extractor's training harder, and how to see that it has not begun to learn.

The rules are those that make training take off: clean images and a strong signal first; once the
message is read, random attacks that grow; and only when those are at their worst, a signal that
shrinks. Every step harder is taken only while the message is still read, so a slow machine stays
longer on easy ground instead of being left behind by a timetable.
"""

import math
import sys
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor


class NoTakeOff(RuntimeError):
    """The extractor still guesses after the images it should have needed to begin reading."""


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """What is easy, what is hard, and how fast one becomes the other."""

    first_strength: float = 0.2  # root mean square of the residual: 14 dB
    last_strength: float = 0.0126  # 38 dB
    read_well: float = 0.85  # smoothed bit accuracy that allows harder attacks
    read_very_well: float = 0.92  # and, once they are at their hardest, a weaker signal
    attack_images: int = 60_000  # images read well, from no attack to full attacks
    strength_images: int = 150_000  # images read well, from the first strength to the last
    patience_images: int | None = 100_000  # to leave chance by `take_off_margin`; None: for ever
    take_off_margin: float = 0.04
    sizes: tuple[int, ...] = (32, 64, 128)  # of the crops
    size_starts: tuple[float, ...] = (0.0, 0.4, 0.9)  # share of the budget; not before the
    size_latest: float = 0.5  # first crops are read well, or this share is spent

    def __post_init__(self) -> None:
        for name in ("sizes", "size_starts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 0.5 < self.read_well <= self.read_very_well < 1:
            raise ValueError(
                "expected 0.5 < read_well <= read_very_well < 1, got "
                f"{self.read_well} and {self.read_very_well}"
            )
        if not 0 < self.last_strength <= self.first_strength:
            raise ValueError(
                "strengths must satisfy 0 < last_strength <= first_strength, got "
                f"{self.last_strength} and {self.first_strength}"
            )
        if len(self.sizes) != len(self.size_starts) or self.size_starts[0] != 0:
            raise ValueError(
                "expected one start per size, the first 0, got "
                f"sizes {self.sizes} and starts {self.size_starts}"
            )


@dataclass
class Curriculum:
    """The state of a run: how well it reads, and how hard the task is now."""

    config: CurriculumConfig
    bits: int
    images: int = 0
    attack_strength: float = 0.0
    strength: float = 0.0
    taken_off: bool = False
    has_read_well: bool = False
    accuracy: list[float] = field(default_factory=list)  # smoothed, per bit

    def __post_init__(self) -> None:
        self.strength = self.strength or self.config.first_strength
        self.accuracy = self.accuracy or [0.5] * self.bits

    @property
    def bit_accuracy(self) -> float:
        return sum(self.accuracy) / self.bits

    @property
    def learnt_bits(self) -> int:
        """Bits read in nine images of ten; a mean does not say how many that are."""
        return sum(accuracy > 0.9 for accuracy in self.accuracy)

    def size(self, progress: float) -> int:
        """Side of the crops at this share of the budget."""
        if not self.has_read_well and progress < self.config.size_latest:
            return self.config.sizes[0]
        stages = zip(self.config.sizes, self.config.size_starts, strict=True)
        return [size for size, start in stages if start <= progress][-1]

    def update(self, logits: Tensor, message: Tensor) -> None:
        """Note one batch, logits and message (B, bits), and make the task harder if it is easy.

        Raises:
            NoTakeOff: with what to try, once `patience_images` have passed at chance.
        """
        config, batch = self.config, len(logits)
        correct = ((logits > 0) == message.bool()).float().mean(dim=0).tolist()
        weight = min(1.0, batch / 4096)  # smoothed over about 4,096 images
        self.accuracy = [
            (1 - weight) * old + weight * new
            for old, new in zip(self.accuracy, correct, strict=True)
        ]
        self.images += batch
        accuracy = self.bit_accuracy
        self.taken_off = self.taken_off or accuracy > 0.5 + config.take_off_margin
        if accuracy > config.read_well:
            self.has_read_well = True
            if self.attack_strength == 1 and accuracy > config.read_very_well:
                ratio = math.log(config.last_strength / config.first_strength)
                self.strength *= math.exp(ratio * batch / config.strength_images)
                self.strength = max(self.strength, config.last_strength)
            step = batch / config.attack_images
            self.attack_strength = min(1.0, self.attack_strength + step)
        elif (
            config.patience_images is not None
            and not self.taken_off
            and self.images >= config.patience_images
        ):
            raise NoTakeOff(
                f"bit accuracy is {accuracy:.3f} after {self.images} images: the extractor has not "
                "begun to learn. What helps, in order: a stronger signal at first (first_strength "
                f"{config.first_strength} -> {min(0.5, 2 * config.first_strength):g}), smaller "
                "crops (sizes), a larger batch, a learning rate two times lower or higher, fewer "
                "bits"
            )

    def say_if_unfinished(self) -> None:
        """Warn at a run's end if the attacks never came to their full strength."""
        if self.attack_strength < 1:
            print(
                f"the training ended at {self.attack_strength:.2f} of the attacks' strength: it "
                "needs more time, and what it made was not trained for what is still to come",
                file=sys.stderr,
            )

    def state(self) -> dict:
        """Plain values to resume from: `Curriculum(config, **state)`."""
        state = asdict(self)
        del state["config"]
        return state


SPECTRAL_CURRICULUM = CurriculumConfig(
    first_strength=0.1, last_strength=0.0079, read_very_well=0.88,  # to 42 dB
    attack_images=20_000, strength_images=40_000,
    sizes=(96, 128),
    size_starts=(0.0, 0.85),
)  # fmt: skip


def learning_rate_factor(progress: float, *, warm_up: float = 0.03, last: float = 0.01) -> float:
    """Linear warm-up, then half a cosine down to `last`; progress in [0, 1] of the budget."""
    if progress < warm_up:
        return max(progress / warm_up, 1e-2)
    fall = (min(progress, 1.0) - warm_up) / (1 - warm_up)
    return last + (1 - last) * (1 + math.cos(math.pi * fall)) / 2


def random_crops(images: Tensor, size: int, *, generator: torch.Generator) -> Tensor:
    """One window of the batch, at a random place and flipped at random: (B, 3, size, size)."""
    height, width = images.shape[-2:]
    size = min(size, height, width)
    top, left, flip = (
        int(torch.randint(0, bound, (), generator=generator))
        for bound in (height - size + 1, width - size + 1, 2)
    )
    window = images[..., top : top + size, left : left + size]
    return window.flip(-1) if flip else window
