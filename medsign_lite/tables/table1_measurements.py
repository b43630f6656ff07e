"""The measurements of Table 1, one watermark at a time, on images that no training has seen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from medsign_lite.attacks import CONVENTIONS, PAPER_ATTACKS, Attack, specification
from medsign_lite.baselines.marked_regions import random_patches
from medsign_lite.baselines.watermark_methods import WatermarkMethod, as_grey_file, dct_dwt
from medsign_lite.checkpoints import digest
from medsign_lite.detection import (
    empirical_false_positive_rate,
    extract_logits,
    fitted_false_positive_rate,
    images_needed,
    matching_bits,
)
from medsign_lite.error_correction import read_whole
from medsign_lite.evaluation import evaluate_attacks, quality_row
from medsign_lite.images import quantise
from medsign_lite.latent_diffusion import Autoencoder, decode
from medsign_lite.records.kept_parts import Part
from medsign_lite.results import to_json
from medsign_lite.rows import mean_row, share_row
from medsign_lite.tables.matched_quality import LADDER, curve_row, match_psnr, read_attacked
from medsign_lite.training.random_streams import named_generator

EMPIRICAL_RATES = (1e-3, 1e-2, 1e-1)  # the first that the images can tell anything of


def check_empirical_rate(rate: float, images: int) -> None:
    """Raise a ValueError unless so many unmarked images can state a false-positive rate."""
    if images < images_needed(rate):
        raise ValueError(
            f"to count a false-positive rate of {rate:g} takes at least {images_needed(rate)} "
            f"unmarked images, got {images}: ask for more images or a larger rate"
        )


@dataclass(frozen=True, kw_only=True)
class TableImages:
    """The images that every row of the table is measured on.

    Attributes:
        vae: the original autoencoder.
        latents: (N, C, h, w), scaled.
        seed: of the intervals.
        false_positive_rate: at which an image is called marked; by theory.
        empirical_rate: a false-positive rate that unmarked images are counted at, in (0, 1).
            Default: the strictest of `EMPIRICAL_RATES` that so many images can state.
        resamples: of the bootstrap.

    Raises:
        ValueError: for too few images for the empirical rate that is asked for.
    """

    vae: Autoencoder
    latents: Tensor
    seed: int = 0
    false_positive_rate: float = 1e-6
    empirical_rate: float | None = None
    resamples: int = 1000
    _drawn: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.empirical_rate is None:
            stated = [r for r in EMPIRICAL_RATES if images_needed(r) <= len(self.latents)]
            object.__setattr__(self, "empirical_rate", stated[0] if stated else None)
        else:
            check_empirical_rate(self.empirical_rate, len(self.latents))

    @cached_property
    def originals(self) -> Tensor:
        """(N, 3, H, W) in [0, 1], rounded to 8 bits."""
        return quantise(decode(self.vae, self.latents).cpu())

    def drawn(self, method: WatermarkMethod) -> tuple[Tensor, Tensor]:
        """As `WatermarkMethod.draw`; kept until another method is asked for."""
        if method not in self._drawn:
            self._drawn.clear()
            self._drawn[method] = method.draw(self.originals, self.latents)
        return self._drawn[method]

    def generator(self, name: str) -> torch.Generator:
        """Its own stream for every part, so that one can be repeated alone."""
        return named_generator(self.seed, name)

    def config(self) -> dict:
        """What a recorded figure is of; no path and no message."""
        return {
            "images": len(self.latents),
            "seed": self.seed,
            "latents": digest([self.latents]),
            "autoencoder": digest(self.vae),
            "false_positive_rate": self.false_positive_rate,
            "empirical_rate": self.empirical_rate,
            "resamples": self.resamples,
            "attacks": specification((PAPER_ATTACKS | CONVENTIONS).values()),
        }


def check_readable(
    method: WatermarkMethod, image: Tensor, attacks: Mapping[str, Attack] = PAPER_ATTACKS
) -> None:
    """Raise a ValueError now if images like (1, 3, H, W) cannot carry the message through attacks.

    A crop leaves fewer pixels, and a method that needs as many as it has bits would fail after
    everything was marked.
    """
    for name, attack in attacks.items():
        attacked = attack(image)
        try:
            extract_logits(method.read, attacked)
        except ValueError as error:
            height, width = image.shape[-2:]
            raise ValueError(
                f"row {method.key}: images of {height} x {width} pixels cannot be read after "
                f"{name}, which leaves {attacked.shape[-2]} x {attacked.shape[-1]}: {error}"
            ) from error


def attacked_logits(method: WatermarkMethod, pictures: Tensor, attack: Attack) -> Tensor:
    """Logits (N, K) of pictures (N, 3, H, W) after an attack, on the CPU."""
    parts = [extract_logits(method.read, attack(part)) for part in pictures.split(64)]
    return torch.cat(parts)


def method_row(
    images: TableImages, method: WatermarkMethod, generator: torch.Generator
) -> list[dict]:
    """The row of a method, as a list of one.

    row, method (its title), bits, settings, images, psnr, ssim and seconds with their intervals;
    "attacks", rows of `evaluate_attacks`; and "unmarked", a row per attack of what the attacked
    originals match of the message: attack, rate (nominal), fitted_rate (what is let through if bits
    lean as they do here, see `fitted_false_positive_rate`), and, where there are images enough,
    "counted" at the empirical rate.
    """
    check_readable(method, images.originals[:1])
    drawn, seconds = images.drawn(method)
    options = {"generator": generator, "resamples": images.resamples}
    row = {"row": method.key, "method": method.title, "bits": method.bits,
           "settings": to_json(method.settings)}  # fmt: skip
    row |= quality_row(drawn, images.originals, **options) | mean_row("seconds", seconds, **options)
    row["attacks"] = evaluate_attacks(
        drawn, images.originals, method.read, method.message,
        false_positive_rate=images.false_positive_rate, **options,
    )  # fmt: skip
    row["unmarked"] = unmarked_rows(images, method)
    return [row]


def unmarked_rows(images: TableImages, method: WatermarkMethod) -> list[dict]:
    """How often unmarked images pass for marked, attack by attack; see `method_row`.

    The theory takes bits for fair coins. Of generated images they need not be.
    """
    rows, rate = [], images.false_positive_rate
    for name, attack in PAPER_ATTACKS.items():
        logits = attacked_logits(method, images.originals, attack)
        fitted = fitted_false_positive_rate(logits, method.message, rate)
        row = {"attack": name, "rate": rate, "fitted_rate": fitted}
        if images.empirical_rate is not None:
            rates = (images.empirical_rate,)
            (row["counted"],) = empirical_false_positive_rate(logits, method.message, rates=rates)
        rows.append(row)
    return rows


def curve_rows(
    images: TableImages, method: WatermarkMethod, ladder: Sequence[float],
    generator: torch.Generator,
) -> list[dict]:  # fmt: skip
    """Rows of `curve_row`, one per rung, with the method's key."""
    check_readable(method, images.originals[:1])
    rows, originals = [], images.originals[: method.curve_images]
    for rung in ladder:
        if method.at_psnr is None:
            current, drawn = method, images.drawn(method)[0][: method.curve_images]
        else:
            current = method.at_psnr(rung)
            drawn, _ = current.draw(originals, images.latents[: method.curve_images])
        row = curve_row(
            match_psnr(drawn, originals, rung), originals, current.read,
            current.message, rung=rung, generator=generator, resamples=images.resamples,
        )  # fmt: skip
        rows.append({"row": method.key, "method": method.title} | row)
    return rows


def convention_rows(
    images: TableImages, method: WatermarkMethod, generator: torch.Generator
) -> list[dict]:
    """How far each other reading of an attack's words moves the bit accuracy.

    One dict per attack: row, attack, title, like (the paper's attack that it is compared with),
    rounded (to 8 bits before the attack), bit_accuracy, and change, the difference from the paper's
    reading, image by image, both with their intervals.
    """
    attacks = PAPER_ATTACKS | CONVENTIONS
    check_readable(method, images.originals[:1], attacks)
    drawn, _ = images.drawn(method)
    options = {"generator": generator, "resamples": images.resamples}

    def shares(marked: Tensor, chosen: Mapping[str, Attack]) -> dict[str, Tensor]:
        counts, _ = read_attacked(marked, method.read, method.message, attacks=chosen)
        return dict(zip(chosen, counts.T.double() / method.bits, strict=True))

    rounded = shares(quantise(drawn), attacks)
    floats = shares(drawn.clamp(0, 1), PAPER_ATTACKS)
    rows = []
    for found, is_rounded in ((rounded, True), (floats, False)):
        for name, share in found.items():
            like = name.split()[0]  # "crop side" and "crop back" are both read as "crop"
            rows.append(
                {"row": method.key, "attack": name, "title": attacks[name].title, "like": like,
                 "rounded": is_rounded}
                | mean_row("bit_accuracy", share, **options)
                | mean_row("change", share - rounded[like], **options)
            )  # fmt: skip
    return rows


def code_rows(
    images: TableImages, method: WatermarkMethod, generator: torch.Generator
) -> list[dict]:
    """How many images give a payload without a mistake, by the code that protects it.

    One dict per attack and code of `read_whole`: row, attack, code, payload (its bits) and whole,
    the share of the images, with its interval. Of a method with a multiple of 24 bits.
    """
    check_readable(method, images.originals[:1])
    marked = quantise(images.drawn(method)[0])
    rows = []
    for name, attack in PAPER_ATTACKS.items():
        logits = attacked_logits(method, marked, attack)
        for code, whole in read_whole(logits, method.message).items():
            payload = method.bits if code == "plain" else method.bits // 2
            row = {"row": method.key, "attack": name, "code": code, "payload": payload}
            rows.append(row | share_row("whole", whole))
    return rows


UNMOVED = ("none", "brightness", "jpeg")  # the paper's attacks that leave a region in its place


def pasted_rows(
    images: TableImages, method: WatermarkMethod, generator: torch.Generator
) -> list[dict]:
    """What a method that can locate finds of a marked patch that was pasted into another image.

    A rectangle or ellipse of each marked image replaces the same place of the next image's
    original. One dict per attack of `UNMOVED`: row, attack, images, area (the patch's share of the
    image), iou (of the patch with what is marked with a probability of at least one half), found
    (the share of the patch's pixels that are), alarm (that of the others), and bit_accuracy, with
    their intervals.
    """
    check_readable(method, images.originals[:1])
    marked = quantise(images.drawn(method)[0])
    patch = random_patches(len(marked), marked.shape[-2:], generator=generator)
    pictures = torch.where(patch.bool(), marked, images.originals.roll(-1, dims=0))
    inside, rows = patch[:, 0].bool(), []  # (N, H, W)
    area = inside.double().mean(dim=(1, 2))
    for name in UNMOVED:
        attack = PAPER_ATTACKS[name]
        parts = [method.locate(attack(part)).cpu() for part in pictures.split(64)]
        seen, logits = torch.cat(parts) >= 0.5, attacked_logits(method, pictures, attack)
        values = {
            "area": area,
            "iou": (seen & inside).sum(dim=(1, 2)) / (seen | inside).sum(dim=(1, 2)),
            "found": (seen & inside).double().mean(dim=(1, 2)) / area,
            "alarm": (seen & ~inside).double().mean(dim=(1, 2)) / (1 - area),
            "bit_accuracy": matching_bits(logits, method.message).double() / method.bits,
        }
        row = {"row": method.key, "attack": name, "images": len(marked)}
        for figure, value in values.items():
            row |= mean_row(figure, value, generator=generator, resamples=images.resamples)
        rows.append(row)
    return rows


def chroma_rows(images: TableImages, psnr: float, generator: torch.Generator) -> list[dict]:
    """What DCT-DWT in the chroma plane, as it is commonly packaged, leaves in a file.

    Two dicts, for a colour file and for a grey one: file, images, bits, psnr and bit_accuracy.
    """
    method = dct_dwt(psnr=psnr, plane="chroma")
    check_readable(method, images.originals[:1], {"none": PAPER_ATTACKS["none"]})
    marked, _ = images.drawn(method)
    options = {"generator": generator, "resamples": images.resamples}
    rows = []
    for name, file in (("colour", quantise), ("grey", as_grey_file)):
        (row, _) = evaluate_attacks(
            file(marked), None, method.read, method.message,
            attacks={"none": PAPER_ATTACKS["none"]},
            false_positive_rate=images.false_positive_rate, **options,
        )  # fmt: skip
        quality = quality_row(file(marked), file(images.originals), **options)
        row = {"file": name, "method": method.title, "bits": method.bits} | row | quality
        rows.append({key: value for key, value in row.items() if key != "attack"})
    return rows


def parts(
    images: TableImages,
    methods: Sequence[WatermarkMethod],
    *,
    ladder: Sequence[float] = LADDER,
    conventions: Sequence[str] = (),
    codes: Sequence[str] = (),
    chroma_psnr: float | None = None,
) -> dict[str, Part]:
    """All parts by name: KEY, curve-KEY, conventions-KEY, codes-KEY, pasted-KEY, and chroma.

    Args:
        methods: parts of one follow each other, so that it marks the images once.
        ladder: of the curves, in dB.
        conventions: keys of the methods that get that part.
        codes: keys of the methods that get that one.
        chroma_psnr: of the chroma variant of DCT-DWT, in dB; None for no such part.
    """
    found: dict[str, Part] = {}

    def add(name: str, group: str, measure: Callable, **settings: object) -> None:
        found[name] = Part(group=group, settings=to_json(settings), measure=measure)

    for method in methods:
        own = {"method": method.settings}
        add(method.key, "rows", partial(method_row, images, method), **own)
        fewer = {} if method.curve_images is None else {"images": method.curve_images}
        add(f"curve-{method.key}", "curves", partial(curve_rows, images, method, ladder),
            ladder=ladder, **fewer, **own)  # fmt: skip
        if method.key in conventions:
            add(f"conventions-{method.key}", "conventions",
                partial(convention_rows, images, method), **own)  # fmt: skip
        if method.key in codes:
            add(f"codes-{method.key}", "codes", partial(code_rows, images, method), **own)
        if method.locate is not None:
            add(f"pasted-{method.key}", "pasted", partial(pasted_rows, images, method), **own)
    if chroma_psnr is not None:
        add("chroma", "chroma", partial(chroma_rows, images, chroma_psnr), psnr=chroma_psnr)
    return found
