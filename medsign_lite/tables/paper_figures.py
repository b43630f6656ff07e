"""The paper's Fig. 2 and Fig. 3, and a pasted patch: arrays in, a figure out, one row per image.

Fig. 2 shows how a word's attention becomes the localisation map, Fig. 3 what watermarks change and
where. Both outline the true finding: on phantoms the exact mask, on generated images what an
independent segmenter sees in the unmarked one. The caller knows which, and its caption says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from medsign_lite.plotting import (
    show_difference,
    show_image,
    show_map,
    show_outline,
    show_token_maps,
)
from medsign_lite.selection import average_tokens, scale_attention, select_token


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of a report in one image: a row of Fig. 2.

    Attributes:
        title: such as the finding's name.
        image: (3, H, W) in [0, 1].
        attention: (T, h, w), the maps of the word's T tokens, any scale.
        tokens: T texts.
        mask: (H, W) bool, the true finding; None draws no outline.
    """

    title: str
    image: Tensor
    attention: Tensor
    tokens: Sequence[str]
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.attention.ndim != 3 or len(self.attention) != len(self.tokens):
            raise ValueError(
                f"{self.title}: expected attention ({len(self.tokens)}, h, w), one map a token, "
                f"got {tuple(self.attention.shape)}"
            )


def selection_figure(
    words: Sequence[Word], *, cas: Mapping | None = None, preset: str = "sharp"
) -> Figure:
    """Fig. 2: token maps with the one CAS chose, their average, AAS as printed, the final map.

    Args:
        words: one row each.
        cas: keyword arguments of `select_token`.
        preset: of `scale_attention` for the final map.

    Returns:
        A figure of five columns; above each token map stands its number of clusters.

    Raises:
        ValueError: if there is no word.
    """
    if not words:
        raise ValueError("expected at least one word, got none")
    widest = max(len(word.tokens) for word in words)
    figure = Figure(figsize=(8.6 + 1.3 * widest, 2.9 * len(words)), layout="constrained")
    grid = figure.add_gridspec(len(words), 5, width_ratios=(1, max(1.5, 0.6 * widest), 1, 1, 1))
    for row, word in enumerate(words):
        axes = [figure.add_subplot(grid[row, column]) for column in range(5)]
        size = tuple(word.image.shape[-2:])
        chosen = select_token(word.attention, range(len(word.tokens)), **(cas or {}))
        average = full_size(average_tokens(word.attention), size)
        best = full_size(chosen.map, size)
        final = scale_attention(best, preset=preset)
        show_image(word.image, title=word.title, ax=axes[0])
        if word.mask is not None:
            show_outline(word.mask, ax=axes[0])
        show_token_maps(
            word.attention,
            word.tokens,
            scores=[score.clusters for score in chosen.scores],
            chosen=chosen.index,
            ax=axes[1],
        )
        plain = scale_attention(average, preset=None)
        show_map(word.image, plain, title="average of tokens\n(without CAS)", ax=axes[2])
        literal = scale_attention(best, preset="literal")
        show_map(word.image, literal, title="chosen by CAS,\nAAS as printed", ax=axes[3])
        show_map(word.image, final, mask=word.mask, title=f"final map,\n{preset}", ax=axes[4])
    return figure


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One image and what several watermarking decoders made of its latents: a row of Fig. 3.

    Attributes:
        title: such as the modality.
        original: (3, H, W) in [0, 1], by the original decoder.
        map: (h, w) in [0, 1], the localisation map.
        marked: by name, (3, H, W) in [0, 1].
        mask: (H, W) bool, the true finding; None draws no outline.
    """

    title: str
    original: Tensor
    map: Tensor
    marked: Mapping[str, Tensor]
    mask: Tensor | None = None


def residual_comparison_figure(rows: Sequence[Comparison], *, gain: float = 10.0) -> Figure:
    """Fig. 3: the original with its map, and per decoder the watermarked image and |I_w - I_o|.

    Args:
        rows: with the decoders of the same names in every row.
        gain: by which the difference is enlarged.

    Returns:
        A figure of two columns, and two more per decoder; the finding is outlined in all of them
        but the watermarked images, which are shown as they are.

    Raises:
        ValueError: if there is no row or decoder, or the names differ between rows.
    """
    names = list(rows[0].marked) if rows else []
    if not names or any(list(row.marked) != names for row in rows):
        found = [list(row.marked) for row in rows]
        raise ValueError(f"expected rows with images of the same decoders, got {found}")
    columns = 2 + 2 * len(names)
    figure = Figure(figsize=(2.3 * columns, 2.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        show_image(row.original, title=row.title, ax=axes[0])
        if row.mask is not None:
            show_outline(row.mask, ax=axes[0])
        show_map(row.original, row.map, mask=row.mask, title="localisation map", ax=axes[1])
        for column, (name, image) in enumerate(row.marked.items()):
            watermarked, difference = axes[2 + 2 * column : 4 + 2 * column]
            show_image(image, title=name, ax=watermarked)
            title = f"{name},\ndifference x {gain:g}"
            show_difference(image, row.original, gain=gain, title=title, ax=difference)
            if row.mask is not None:
                show_outline(row.mask, ax=difference)
    return figure


@dataclass(frozen=True, kw_only=True)
class Pasted:
    """A marked patch in an image that is not marked, and where a detector sees the mark.

    Attributes:
        title: such as the modality.
        picture: (3, H, W) in [0, 1], with the patch in it.
        patch: (H, W) bool, where it is.
        likely: (H, W) in [0, 1], how likely each pixel is marked.
    """

    title: str
    picture: Tensor
    patch: Tensor
    likely: Tensor


def pasted_figure(rows: Sequence[Pasted]) -> Figure:
    """The picture as it is found, and how likely each of its pixels is marked; the patch outlined
    in the second alone, for in the first nobody sees it."""
    figure = Figure(figsize=(5.2, 2.7 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 2, squeeze=False)
    for (left, right), row in zip(grid, rows, strict=True):
        show_image(row.picture, title=f"{row.title}: a patch is marked", ax=left)
        show_map(row.picture, row.likely, mask=row.patch, title="likely marked", colour_bar=True,
                 ax=right)  # fmt: skip
    return figure


def full_size(map: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (h, w) at the image's size."""
    large = F.interpolate(map[None, None].float(), size, mode="bilinear", align_corners=False)
    return large[0, 0]
