"""What the attacker's figures show: panels, lines and words, worked by hand from the rows."""

import numpy as np
import pytest
import torch
from grid_extractor import GridExtractor, grid_image

from medsign_lite.adversary.attack_curves import CURVES
from medsign_lite.adversary.attack_figures import (
    attack_figure,
    cost_figure,
    residual_figure,
    strength_figure,
)
from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.adversary.forgery import forgery_rows
from medsign_lite.messages import message_from_string
from medsign_lite.widgets import figure_bytes

MESSAGE = "1011" * 12


def row(attack, strength, accuracy, *, share=1.0, psnr=30.0, kept=1.0, **more):
    return {
        "attack": attack, "strength": strength, "bit_accuracy": accuracy,
        "bit_accuracy_low": accuracy - 0.1, "bit_accuracy_high": accuracy,
        "true_positive_rate": share, "psnr": psnr, "kept": kept,
    } | more  # fmt: skip


CURVE = [row("jpeg", 10, 0.6, share=0.0, psnr=25.0), row("jpeg", 100, 1.0, psnr=100.0),
         row("crop", 0.5, 0.9, psnr=None, kept=0.5), row("crop", 1.0, 1.0, psnr=None)]  # fmt: skip


def points(line) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]


def test_strength_figure_draws_what_is_read_above_what_it_costs():
    figure = strength_figure(CURVE)
    jpeg, crop, jpeg_cost, crop_cost = figure.axes
    assert [jpeg.get_title(), crop.get_title()] == ["jpeg", "crop"]
    accuracy, share, chance = jpeg.lines
    assert points(accuracy) == [(10, 0.6), (100, 1.0)]
    assert points(share) == [(10, 0.0), (100, 1.0)]
    assert set(chance.get_ydata()) == {0.5}
    band = jpeg.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(0.5) and band.max() == pytest.approx(1.0)
    assert points(jpeg_cost.lines[0]) == [(10, 25.0), (100, 60.0)]  # 100 dB is off the scale
    assert points(crop_cost.lines[0]) == [(0.5, 0.5), (1.0, 1.0)]
    assert crop_cost.get_title(loc="left") == "share of image left"
    assert crop_cost.get_xlabel() == "share of the area"
    figure_bytes(figure)


def test_strength_figure_can_be_read_on_a_page():
    figure = strength_figure([row(name, 1.0, 0.9) for name in CURVES])
    width, _ = figure.get_size_inches()
    assert width <= 9  # a page of 870 pixels leaves 97 of them to an inch
    texts = [text for ax in figure.axes for text in ax.texts]
    assert min(t.get_fontsize() for t in (*texts, *figure.legends[0].get_texts())) >= 9
    ruled = [ax for ax in figure.axes if ax.axison and ax.get_subplotspec().is_first_col()]
    assert [ax.get_ylabel() for ax in ruled] == ["read", "cost"] * 3  # every line of panels


def test_strength_figure_leaves_no_empty_panel_visible():
    rows = [row(name, 1.0, 0.9) for name in CURVES][:7]
    axes = strength_figure(rows, columns=5).axes
    assert sum(ax.axison for ax in axes) == 14 and len(axes) == 20


def cost_lines(figure) -> dict[str, tuple[list, list]]:
    """By label, the steps of the best choice and the points: three lines are drawn per attack."""
    lines = figure.axes[0].lines
    triples = zip(lines[::3], lines[1::3], lines[2::3], strict=True)
    return {label.get_label(): (points(step), points(dots)) for step, dots, label in triples}


def test_cost_figure_has_a_line_per_attack_and_leaves_out_what_costs_nothing():
    regenerated = row("autoencoder", None, 0.5, share=0.1, psnr=38.0, model="original")
    removed = [row("remove", 40.0, 0.7, share=s, psnr=p, averaged=n, estimate="blurred")
               for s, p, n in ((0.2, 35.0, 8), (0.1, 40.0, 1), (0.6, 45.0, 8))]  # fmt: skip
    figure = cost_figure([*CURVE, regenerated, *removed])
    lines = cost_lines(figure)
    assert [*lines] == ["jpeg", "autoencoder, original", "remove, blurred"]
    assert lines["jpeg"] == ([(25.0, 0.0), (14.0, 0.0)], [(25.0, 0.0)])
    steps, dots = lines["remove, blurred"]
    assert dots == [(35.0, 0.2), (40.0, 0.1), (45.0, 0.6)]
    # At 35 dB the attacker had better take what was found at 40 dB: fewer are detected.
    assert steps == [(45.0, 0.6), (40.0, 0.1), (35.0, 0.1), (14.0, 0.1)]
    figure_bytes(figure)


def test_cost_figure_draws_what_forgery_measures_and_leaves_out_the_forgeries():
    images = torch.stack([grid_image(MESSAGE)] * 2)
    rows = forgery_rows(
        images, images, torch.full_like(images, 0.5), detector_of(MESSAGE),
        estimates={"flat": lambda part: torch.full_like(part, 0.5)}, counts=(1,),
        decibels=(20.0, 45.0), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert {each["attack"] for each in rows} == {"forge", "remove"}
    removed = sorted((each["psnr"], each["called_marked"]) for each in rows
                     if each["attack"] == "remove")  # fmt: skip
    figure = cost_figure([*CURVE, *rows])
    lines = cost_lines(figure)
    assert [*lines] == ["jpeg", "remove, flat"]
    assert sorted(lines["remove, flat"][1]) == removed
    figure_bytes(figure)


def test_cost_figure_tells_many_lines_apart_without_colour():
    rows = [row(f"attack {i}", 1.0, 0.9) for i in range(18)]
    lines = cost_figure(rows).axes[0].lines
    styles = [(line.get_linestyle(), line.get_marker()) for line in lines[2::3]]
    assert len(set(styles)) == 18
    for step, dots, (dash, marker) in zip(lines[::3], lines[1::3], styles, strict=True):
        assert (step.get_linestyle(), dots.get_marker()) == (dash, marker)
    steps = [line.get_linestyle() for line in lines[::3]]
    assert all(dash != following for dash, following in zip(steps, steps[1:], strict=False))


def detector_of(message):
    return Detector(extractor=GridExtractor(), message=message_from_string(message))


@pytest.fixture
def detector():
    return detector_of(MESSAGE)


@pytest.mark.parametrize("attack", ["jpeg", "rotation", "resize", "screenshot"])
def test_attack_figure_says_what_is_read_and_what_it_cost(detector, attack):
    figure = attack_figure(grid_image(MESSAGE), detector, attack=attack)
    said = figure.get_suptitle()
    assert "of 48 bits, p = " in said and "(at most 1e-06 is needed)" in said
    assert ("no PSNR" in said) == (attack == "rotation")
    assert ("PSNR 2" in said or "PSNR 3" in said or "PSNR 4" in said) != (attack == "rotation")
    figure_bytes(figure)


def test_attack_figure_of_no_effect_reads_everything_and_costs_nothing(detector):
    figure = attack_figure(grid_image(MESSAGE), detector, attack="chain", strength=0)
    assert figure.get_suptitle().startswith("detected: 48 of 48 bits")
    assert "nothing changed" in figure.get_suptitle()


def test_attack_figure_refuses_what_is_out_of_range(detector):
    with pytest.raises(ValueError, match=r"noise: expected a strength in \[0, 1\], got 2"):
        attack_figure(grid_image(MESSAGE), detector, attack="noise", strength=2)
    with pytest.raises(ValueError, match="expected an attack among jpeg, .*, got 'fog'"):
        attack_figure(grid_image(MESSAGE), detector, attack="fog")


def test_residual_figure_shows_each_over_its_own_range():
    stripes = torch.tensor([-1.0, 1.0]).repeat(8).expand(3, 16, 16)
    figure = residual_figure({"weak": stripes / 255, "strong": stripes[None] * 10 / 255})
    weak, strong = figure.axes
    assert weak.get_title() == "weak\n1.00 / 255" and strong.get_title() == "strong\n10.00 / 255"
    shown = [ax.images[0] for ax in (weak, strong)]
    limits = [image.norm.vmax for image in shown]
    assert limits[1] == pytest.approx(10 * limits[0])
    np.testing.assert_allclose(shown[0].get_array() * 10, shown[1].get_array(), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: strength_figure([]), "expected rows of strength curves, got none"),
        (lambda: cost_figure(CURVE[2:]), "expected rows with a PSNR of 14 to 55 dB, got none"),
        (lambda: residual_figure({}), "expected at least one residual, got none"),
    ],
    ids=["strength", "cost", "residual"],
)
def test_figures_of_nothing_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
