import ipywidgets
import pytest
import torch
from matplotlib.figure import Figure

from medsign_lite.adversary.attack_curves import CURVES
from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.attacks import SWEEPS
from medsign_lite.widgets import (
    FigurePanel,
    aas_figure,
    aas_widget,
    attack_figure,
    attack_widget,
    attention_figure,
    attention_widget,
    cas_figure,
    cas_widget,
    detection_figure,
    detection_widget,
    figure_bytes,
)
from tests.test_figures import TOKENS, WORDS, Brightness, recorded, spot

IMAGE = torch.linspace(0, 1, 3 * 64 * 64).reshape(3, 64, 64)
DETECTOR = Detector(extractor=Brightness(40), message=torch.ones(40))
MAPS = torch.stack([spot(16), spot(16).flip(0)])
PAIRS = {
    "attention": lambda: (
        attention_widget(IMAGE, recorded(), TOKENS, WORDS),
        attention_figure(IMAGE, recorded(), TOKENS, WORDS),
    ),
    "cas": lambda: (cas_widget(MAPS, TOKENS[:2]), cas_figure(MAPS, TOKENS[:2])),
    "aas": lambda: (aas_widget(IMAGE, spot()), aas_figure(IMAGE, spot())),
    "detection": lambda: (
        detection_widget(IMAGE, Brightness(40), "1" * 40),
        detection_figure(IMAGE, Brightness(40), "1" * 40),
    ),
    "attack": lambda: (attack_widget(IMAGE, DETECTOR), attack_figure(IMAGE, DETECTOR)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_widget_first_shows_its_static_twin(name):
    widget, figure = PAIRS[name]()
    assert isinstance(widget, ipywidgets.VBox)
    assert widget.picture.value == figure_bytes(figure)
    assert widget.picture in widget.children


def drawn(widget: FigurePanel) -> list[dict]:
    """Let a widget note what it is asked to draw, instead of drawing."""
    calls = []
    figure = Figure(figsize=(1, 1))

    def note(**settings):
        calls.append(settings)
        return figure

    widget.draw = note
    return calls


def test_a_control_redraws_with_its_value():
    widget, _ = PAIRS["aas"]()
    before = widget.picture.value
    widget.controls["quantile"].value = 0.3
    assert widget.picture.value == figure_bytes(aas_figure(IMAGE, spot(), quantile=0.3)) != before


def test_an_error_is_raised_and_shown_in_place_of_the_figure():
    number = ipywidgets.IntText(value=1)

    def draw(divisor):
        return Figure(figsize=(1 / divisor, 1))

    widget = FigurePanel(draw, {"divisor": number})
    assert widget.message.value == "" and widget.picture.layout.display is None
    with pytest.raises(ZeroDivisionError):
        number.value = 0
    assert "ZeroDivisionError: division by zero" in widget.message.value
    assert widget.picture.layout.display == "none"
    number.value = 2  # it recovers
    assert widget.message.value == "" and widget.picture.layout.display is None


def test_an_error_from_the_figure_reaches_the_reader():
    widget = cas_widget(MAPS, TOKENS[:2])
    maps = torch.ones(2, 16, 16)
    widget.draw = lambda **settings: cas_figure(maps, TOKENS[:2], **settings)
    with pytest.raises(ValueError, match="nearly constant"):
        widget.controls["quantile"].value = 0.5
    assert "nearly constant" in widget.message.value


def test_another_word_offers_its_own_tokens():
    widget, _ = PAIRS["attention"]()
    calls = drawn(widget)
    controls = widget.controls
    controls["token"].value = 1
    controls["word"].value = "edema"
    assert [value for _, value in controls["token"].options] == [None, 2]
    assert calls[-1]["word"] == "edema" and calls[-1]["token"] is None
    controls["token"].value = 2
    controls["layer"].value, controls["head"].value, controls["step"].value = "down", 1, 100
    assert calls[-1] == {"word": "edema", "token": 2, "step": 100, "layer": "down", "head": 1}
    assert all(call["token"] in (None, *WORDS[call["word"]]) for call in calls)


def test_features_bring_their_own_radius():
    widget, _ = PAIRS["cas"]()
    calls = drawn(widget)
    widget.controls["features"].value = "grid"
    widget.controls["side"].value = 64
    widget.controls["min_samples"].value = 3
    expected = {"features": "grid", "eps": 1.5, "min_samples": 3, "quantile": 0.7, "side": 64}
    assert calls[-1] == expected


def test_a_preset_brings_its_gain():
    widget, _ = PAIRS["aas"]()
    calls = drawn(widget)
    widget.controls["preset"].value = "sharp"
    assert calls[-1]["gain"] == pytest.approx(20)
    widget.controls["preset"].value = "hard"
    assert widget.controls["gain"].disabled
    widget.controls["preset"].value = "literal"
    assert not widget.controls["gain"].disabled and calls[-1]["gain"] == pytest.approx(1)


def test_every_attack_offers_its_own_strengths():
    widget, _ = PAIRS["detection"]()
    calls = drawn(widget)
    for name, values in SWEEPS.items():
        widget.controls["attack"].value = name
        assert calls[-1]["attack"] == name and calls[-1]["strength"] in values
        widget.controls["strength"].value = values[-1]
        assert calls[-1]["strength"] == values[-1]
    widget.controls["attack"].value = "none"
    assert calls[-1] == {"attack": "none", "strength": None, "false_positive_rate": 1e-6}


def test_every_attack_of_an_attacker_offers_its_own_strengths():
    widget, _ = PAIRS["attack"]()
    calls = drawn(widget)
    for name, values in CURVES.items():
        if name == "jpeg":
            continue
        widget.controls["attack"].value = name
        assert calls[-1] == {"attack": name, "strength": values[len(values) // 2]}
        widget.controls["strength"].value = values[-1]
        assert calls[-1] == {"attack": name, "strength": values[-1]}
    assert all(call["strength"] in CURVES[call["attack"]] for call in calls)
