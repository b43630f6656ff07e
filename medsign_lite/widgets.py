"""Widgets for notebooks: a figure function with controls around it.

The figure functions of `figures.py` are the static twins; the function of the same name with
`_widget` puts controls around one. What a widget shows first is what its twin draws with its
defaults. An error while drawing is shown in place of the figure and raised as well, so that
neither a reader nor a test can miss it.
"""

import html
import io
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
from matplotlib.figure import Figure
from torch import Tensor, nn

from medsign_lite.adversary.attack_curves import CURVES
from medsign_lite.adversary.attack_figures import attack_figure
from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.attacks import ATTACK_TABLE, SWEEPS
from medsign_lite.figures import (
    aas_figure,
    attention_figure,
    cas_figure,
    detection_figure,
    sum_attention,
)
from medsign_lite.selection import GAINS

__all__ = [
    "FigurePanel",
    "aas_figure",
    "aas_widget",
    "attack_figure",
    "attack_widget",
    "attention_figure",
    "attention_widget",
    "cas_figure",
    "cas_widget",
    "detection_figure",
    "detection_widget",
    "figure_bytes",
    "sum_attention",
]

RATES = (1e-1, 1e-2, 1e-3, 1e-6, 1e-9)  # false-positive rates to choose from


class FigurePanel(ipywidgets.VBox):
    """Controls above a figure that is drawn anew when one of them changes.

    Attributes:
        controls: name -> widget; its value is the argument of that name. Set one in code to test.
        picture: the figure as a PNG; hidden while there is an error.
        message: what went wrong, or nothing.
    """

    def __init__(self, draw: Callable[..., Figure], controls: Mapping[str, ipywidgets.Widget]):
        self.draw, self.controls = draw, dict(controls)
        self.picture = ipywidgets.Image(format="png")
        self.message = ipywidgets.HTML()
        layout = ipywidgets.Layout(flex_flow="row wrap")
        rows = ipywidgets.Box(tuple(self.controls.values()), layout=layout)
        super().__init__((rows, self.message, self.picture))
        for control in self.controls.values():
            control.observe(self.refresh, names="value")
        self.refresh()

    def refresh(self, change: object = None) -> None:
        """Draw with the controls' values. An error is shown, and raised."""
        try:
            figure = self.draw(**{name: control.value for name, control in self.controls.items()})
            self.picture.value = figure_bytes(figure)
        except Exception as error:
            text = html.escape(f"{type(error).__name__}: {error}")
            self.message.value = f'<b role="alert" style="color: #b00020">{text}</b>'
            self.picture.layout.display = "none"  # an old figure must not pass for the new one
            raise
        self.message.value = ""
        self.picture.layout.display = None


def figure_bytes(figure: Figure) -> bytes:
    """The figure as a PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, facecolor="white")
    return buffer.getvalue()


def _dropdown(name: str, options: Sequence, value: object) -> ipywidgets.Dropdown:
    return ipywidgets.Dropdown(description=name, options=list(options), value=value)


def _slider(name: str, value: float, low: float, high: float, step: float):
    return ipywidgets.FloatSlider(
        description=name, value=value, min=low, max=high, step=step, continuous_update=False
    )


def attention_widget(
    image: Tensor,
    maps: Mapping[int, Mapping[str, Tensor]],
    tokens: Sequence[str],
    words: Mapping[str, Sequence[int]],
    *,
    mask: Tensor | None = None,
) -> FigurePanel:
    """`attention_figure` with controls for word, token, step, layer and head."""
    layers = next(iter(maps.values()))
    heads = min(value.shape[0] for value in layers.values())
    first = next(iter(words))

    def of_word(word: str) -> list:
        return [("all", None), *((f"{tokens[i]} ({i})", i) for i in words[word])]

    controls = {
        "word": _dropdown("word", words, first),
        "token": _dropdown("token", of_word(first), None),
        "step": _dropdown("step", [("all", None), *((str(step), step) for step in maps)], None),
        "layer": _dropdown("layer", [("all", None), *((name, name) for name in layers)], None),
        "head": _dropdown("head", [("all", None), *((str(i), i) for i in range(heads))], None),
    }
    # Registered before the panel's own observers: a token of the old word is gone when it draws.
    controls["word"].observe(
        lambda change: setattr(controls["token"], "options", of_word(change.new)), names="value"
    )

    def draw(**settings) -> Figure:
        return attention_figure(image, maps, tokens, words, mask=mask, **settings)

    return FigurePanel(draw, controls)


def cas_widget(
    maps: Tensor, tokens: Sequence[str], *, features: str = "value", quantile: float = 0.7,
    side: int | None = None,
) -> FigurePanel:  # fmt: skip
    """`cas_figure` with controls for what DBSCAN sees and how it counts."""
    defaults = {"value": 0.5, "grid": 1.5}
    controls = {
        "features": _dropdown("features", defaults, features),
        "eps": _slider("eps", defaults[features], 0.05, 3.0, 0.05),
        "min_samples": ipywidgets.IntSlider(
            description="min_samples", value=5, min=1, max=20, continuous_update=False
        ),
        "quantile": _slider("quantile", quantile, 0.3, 0.95, 0.05),
        "side": _dropdown("side", [("as it is", None), ("32", 32), ("64", 64)], side),
    }
    controls["features"].observe(
        lambda change: setattr(controls["eps"], "value", defaults[change.new]), names="value"
    )

    def draw(**settings) -> Figure:
        return cas_figure(maps, tokens, **settings)

    return FigurePanel(draw, controls)


def aas_widget(
    image: Tensor, map: Tensor, *, mask: Tensor | None = None, preset: str | None = "literal"
) -> FigurePanel:
    """`aas_figure` with controls for preset, gain and quantile."""
    own = {name: value or 1.0 for name, value in GAINS.items()}
    controls = {
        "preset": _dropdown("preset", [(name or "none", name) for name in GAINS], preset),
        "gain": ipywidgets.FloatLogSlider(
            description="gain", value=own[preset], min=0, max=2, step=0.05, continuous_update=False
        ),
        "quantile": _slider("quantile", 0.7, 0.0, 1.0, 0.05),
    }

    def follow(change) -> None:
        controls["gain"].disabled = GAINS[change.new] is None
        controls["gain"].value = own[change.new]

    controls["preset"].observe(follow, names="value")

    def draw(**settings) -> Figure:
        return aas_figure(image, map, mask=mask, **settings)

    return FigurePanel(draw, controls)


def detection_widget(image: Tensor, extractor: nn.Module, message: Tensor | str) -> FigurePanel:
    """`detection_figure` with controls for attack, strength and false-positive rate."""

    def strengths(name: str) -> list:
        return [("-", None)] if name == "none" else [(f"{v:g}", v) for v in SWEEPS[name]]

    controls = {
        "attack": _dropdown("attack", ["none", *SWEEPS], "none"),
        "strength": _dropdown("strength", strengths("none"), None),
        "false_positive_rate": _dropdown("error rate", [(f"{r:.0e}", r) for r in RATES], 1e-6),
    }

    def follow(change) -> None:
        controls["strength"].options = strengths(change.new)
        if change.new != "none":
            controls["strength"].value = next(iter(ATTACK_TABLE[change.new].parameters.values()))

    controls["attack"].observe(follow, names="value")

    def draw(**settings) -> Figure:
        return detection_figure(image, extractor, message, **settings)

    return FigurePanel(draw, controls)


def attack_widget(
    image: Tensor, detector: Detector, *, attack: str = "jpeg", strength: float | None = None
) -> FigurePanel:
    """`attack_figure` with controls for the attack and its strength."""

    def strengths(name: str) -> list:
        return [(f"{value:g}", value) for value in CURVES[name]]

    def middle(name: str) -> float:
        return CURVES[name][len(CURVES[name]) // 2]

    first = middle(attack) if strength is None else strength
    controls = {
        "attack": _dropdown("attack", CURVES, attack),
        "strength": _dropdown("strength", strengths(attack), first),
    }

    def follow(change) -> None:
        controls["strength"].options = strengths(change.new)
        controls["strength"].value = middle(change.new)

    controls["attack"].observe(follow, names="value")

    def draw(**settings) -> Figure:
        return attack_figure(image, detector, **settings)

    return FigurePanel(draw, controls)
