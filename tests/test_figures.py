import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import label

from medsign_lite.figures import (
    aas_figure,
    attention_figure,
    cas_figure,
    detection_figure,
    sum_attention,
)
from medsign_lite.selection import scale_attention

TOKENS = ["ef", "fusion", "edema"]
WORDS = {"effusion": [0, 1], "edema": [2]}


def recorded() -> dict:
    """Two steps, a fine and a coarse layer of two heads, three tokens; every value different."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"up": (2, 3, 8, 8), "down": (2, 3, 4, 4)}
    return {
        step: {name: torch.rand(size, generator=generator) for name, size in sizes.items()}
        for step in (900, 100)
    }


def texts(figure) -> str:
    """Every text that a figure holds."""
    found = [figure.get_suptitle()]
    for ax in figure.axes:
        found += [ax.get_title(), *(text.get_text() for text in ax.texts)]
    return "\n".join(found)


def spot(size: int = 8) -> torch.Tensor:
    """One smooth spot, (size, size)."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.exp(-((rows - 2.0) ** 2 + (columns - 5.0) ** 2) / 4)


def test_sum_attention_of_one_place_is_that_map():
    maps = recorded()
    found = sum_attention(maps, step=100, layer="up", head=1)
    torch.testing.assert_close(found, maps[100]["up"][1])


def test_sum_attention_adds_steps_layers_and_heads_at_the_largest_size():
    maps = recorded()
    expected = torch.zeros(3, 8, 8)
    for layers in maps.values():
        for value in layers.values():
            for head in value:
                expected += F.interpolate(head[None], (8, 8), mode="bilinear")[0]
    torch.testing.assert_close(sum_attention(maps), expected)
    halves = [sum_attention(maps, head=head) for head in (0, 1)]
    torch.testing.assert_close(halves[0] + halves[1], expected)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"step": 5}, r"step: expected one of \[900, 100\], got 5"),
        ({"layer": "mid"}, r"layer: expected one of \['up', 'down'\], got 'mid'"),
        ({"head": 2}, "up has heads 0 to 1, got 2"),
    ],
    ids=["step", "layer", "head"],
)
def test_sum_attention_names_what_there_is(choice, message):
    with pytest.raises(ValueError, match=message):
        sum_attention(recorded(), **choice)


def test_attention_figure_says_what_it_shows_and_scores_it():
    maps = {100: {"up": torch.zeros(1, 3, 8, 8)}}
    maps[100]["up"][0, 1, :4] = 1.0  # the upper half
    maps[100]["up"][0, 1, 4:] = 0.5 * torch.rand(4, 8)
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:7] = True  # what is all 1 after upsampling
    figure = attention_figure(
        torch.rand(3, 16, 16), maps, TOKENS, WORDS, mask=mask, word="effusion", token=1, step=100
    )
    said = texts(figure)
    for part in ("“effusion”, token “fusion”", "AUC 1.00", "step 100, all layers, all heads"):
        assert part in said
    assert said.count("chosen") == 1


def test_attention_figure_refuses_a_token_of_another_word():
    with pytest.raises(ValueError, match=r"'effusion' is made of \[0, 1\], got 2"):
        attention_figure(torch.rand(3, 16, 16), recorded(), TOKENS, WORDS, token=2)
    with pytest.raises(ValueError, match="word: expected one of"):
        attention_figure(torch.rand(3, 16, 16), recorded(), TOKENS, WORDS, word="drusen")
    with pytest.raises(ValueError, match="got 3 and 2 tokens"):
        attention_figure(torch.rand(3, 16, 16), recorded(), TOKENS[:2], WORDS)


def test_cas_figure_frames_the_compact_map():
    scattered = torch.zeros(16, 16)
    scattered[::4, ::4] = 1.0
    figure = cas_figure(torch.stack([scattered, spot(16)]), ["many", "one"], features="grid")
    table = figure.axes[2].tables[0].get_celld()
    rows = {table[row, 0].get_text().get_text(): row for row in (1, 2)}
    assert table[rows["one"], 1].get_text().get_text() == "1"
    assert table[rows["one"], 4].get_text().get_text() == "chosen"
    assert table[rows["many"], 4].get_text().get_text() == ""


def test_cas_figure_shows_the_pixels_that_are_counted():
    """Upsampled first, as they are clustered: two spots, two regions, a tenth of the pixels."""
    maps = (spot(16) + spot(16).roll((7, 3), dims=(0, 1)))[None]
    figure = cas_figure(maps, ["two"], side=64, quantile=0.9)
    (drawn,) = figure.axes[1].images
    assert drawn.get_array().shape == (64, 64)
    _, regions = label(drawn.get_array() > 0.5, structure=[[1] * 3] * 3)
    clusters = figure.axes[2].tables[0].get_celld()[1, 1].get_text().get_text()
    assert clusters == str(regions) == "2"
    assert 0.09 < (drawn.get_array() > 0.5).mean() < 0.11


def test_aas_figure_states_the_range():
    said = texts(aas_figure(torch.rand(3, 16, 16), spot(), preset="hard", gain=5.0))
    assert "hard: 0.00 to 1.00" in said
    literal = scale_attention(spot(), preset="literal")
    assert literal.max() - literal.min() < 0.25  # as printed in the paper, it never sharpens
    expected = f"literal: {literal.min():.2f} to {literal.max():.2f}"
    assert expected in texts(aas_figure(torch.rand(3, 16, 16), spot()))


class Brightness(torch.nn.Module):
    """Reads only ones from an image brighter than half grey, else only zeros."""

    def __init__(self, bits: int = 4) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image.mean(dim=(1, 2, 3)) - 0.5)[:, None].expand(-1, self.bits)


def test_detection_figure_attacks_before_it_reads():
    image = torch.full((3, 64, 64), 0.4)
    options = {"message": "1111", "false_positive_rate": 0.1}
    before = texts(detection_figure(image, Brightness(), **options))
    after = texts(detection_figure(image, Brightness(), attack="brightness", **options))
    assert "no watermark detected: 0 of 4 bits" in before
    assert "watermark detected: 4 of 4 bits" in after and "brightness 2" in after
    mild = detection_figure(image, Brightness(), attack="brightness", strength=1.1, **options)
    assert "no watermark" in texts(mild)


def test_detection_figure_refuses_an_unknown_attack():
    with pytest.raises(ValueError, match="attack: expected none or one of brightness.*got 'flip'"):
        detection_figure(torch.rand(3, 64, 64), Brightness(), "1111", attack="flip")
    with pytest.raises(ValueError, match=r"jpeg: expected a strength in \[1, 100\], got 0"):
        detection_figure(torch.rand(3, 64, 64), Brightness(), "1111", attack="jpeg", strength=0)
