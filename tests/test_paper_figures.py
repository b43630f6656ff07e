"""The paper's figures: which panels there are and what each holds, worked by hand."""

import numpy as np
import pytest
import torch

from medsign_lite.selection import average_tokens, scale_attention
from medsign_lite.tables.paper_figures import (
    Comparison,
    Word,
    residual_comparison_figure,
    selection_figure,
)
from medsign_lite.widgets import figure_bytes
from tests.test_selection import FOUR, ONE

IMAGE = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(64, 64, dtype=torch.bool)
MASK[20:40, 20:40] = True


def word(title="effusion", **changes):
    fields = {"title": title, "image": IMAGE, "attention": torch.stack([FOUR, ONE]),
              "tokens": ["ef", "fusion"], "mask": MASK}  # fmt: skip
    return Word(**fields | changes)


def overlay(ax) -> np.ndarray:
    """The map that lies over the image."""
    return np.asarray(ax.images[1].get_array())


def outlined(ax) -> bool:
    return len(ax.collections) > 0


def test_selection_figure_goes_from_tokens_to_the_final_map():
    figure = selection_figure([word()])
    image, tokens, average, literal, final = figure.axes
    assert image.get_title() == "effusion"
    shown = np.asarray(image.images[0].get_array()).transpose(2, 0, 1)
    np.testing.assert_allclose(shown, IMAGE, atol=1e-6)  # in its colours
    said = [text.get_text() for text in tokens.texts]
    assert said == ["ef\n4", "fusion\n1", "chosen"]  # CAS takes the one of a single cluster
    expected = scale_attention(average_tokens(torch.stack([FOUR, ONE])), preset=None)
    np.testing.assert_allclose(overlay(average), expected, atol=1e-6)
    np.testing.assert_allclose(overlay(literal), scale_attention(ONE), atol=1e-6)
    np.testing.assert_allclose(overlay(final), scale_attention(ONE, preset="sharp"), atol=1e-6)
    assert [outlined(ax) for ax in figure.axes] == [True, False, False, False, True]
    figure_bytes(figure)


def test_selection_figure_has_a_row_per_word_and_takes_options():
    three = word("edema", attention=torch.stack([ONE, FOUR, FOUR]), tokens=["e", "d", "ema"])
    figure = selection_figure([word(), three], cas={"features": "grid"}, preset="hard")
    assert len(figure.axes) == 10
    assert figure.axes[5].get_title() == "edema" and "hard" in figure.axes[4].get_title()
    assert set(np.unique(overlay(figure.axes[9]))) == {0.0, 1.0}


def test_a_word_without_mask_has_no_outline():
    assert not any(outlined(ax) for ax in selection_figure([word(mask=None)]).axes)


def comparison(title="chest", names=("Stable Signature", "MedSign"), **changes):
    marked = {name: IMAGE * 0.9 + 0.01 * number for number, name in enumerate(names)}
    fields = {"title": title, "original": IMAGE, "map": torch.rand(16, 16), "marked": marked,
              "mask": MASK}  # fmt: skip
    return Comparison(**fields | changes)


def test_residual_figure_shows_what_each_decoder_changed():
    rows = [comparison(), comparison("fundus")]
    figure = residual_comparison_figure(rows, gain=5.0)
    assert len(figure.axes) == 12
    titles = [ax.get_title() for ax in figure.axes[:6]]
    assert titles == ["chest", "localisation map", "Stable Signature",
                      "Stable Signature,\ndifference x 5", "MedSign",
                      "MedSign,\ndifference x 5"]  # fmt: skip
    assert figure.axes[6].get_title() == "fundus"
    changed = (rows[0].marked["MedSign"] - IMAGE).abs().mean(dim=0) * 5
    np.testing.assert_allclose(figure.axes[5].images[0].get_array(), changed, atol=1e-6)
    assert [outlined(ax) for ax in figure.axes[:6]] == [True, True, False, True, False, True]
    figure_bytes(figure)


@pytest.mark.parametrize(
    "mask", [None, torch.zeros(64, 64, dtype=torch.bool)], ids=["none", "empty"]
)
def test_without_a_finding_nothing_is_outlined(mask):
    figure = residual_comparison_figure([comparison(mask=mask)])
    assert not any(outlined(ax) for ax in figure.axes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: selection_figure([]), "expected at least one word, got none"),
        (lambda: word(tokens=["one"]), r"effusion: expected attention \(1, h, w\).* got \(2, 64"),
        (lambda: residual_comparison_figure([]), r"of the same decoders, got \[\]"),
        (lambda: residual_comparison_figure([comparison(names=())]), r"decoders, got \[\[\]\]"),
        (lambda: residual_comparison_figure([comparison(), comparison(names=("MedSign",))]),
         r"got \[\['Stable Signature', 'MedSign'\], \['MedSign'\]\]"),
    ],
    ids=["no word", "tokens", "no row", "no decoder", "other decoders"],
)  # fmt: skip
def test_what_makes_no_figure_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
