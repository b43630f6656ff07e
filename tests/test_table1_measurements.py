"""One watermark at a time, on a handful of images: rows, curves, conventions, the grey file."""

from dataclasses import replace

import pytest
import torch
from grid_extractor import GridExtractor
from tiny_pipeline import tiny_pipeline

from medsign_lite.attacks import CONVENTIONS, PAPER_ATTACKS
from medsign_lite.baselines.watermark_methods import WatermarkMethod, dct_dwt, of_decoder
from medsign_lite.detection import extract_logits
from medsign_lite.images import quantise
from medsign_lite.latent_diffusion import copy_decoder
from medsign_lite.metrics import psnr
from medsign_lite.tables.table1_measurements import (
    TableImages,
    check_readable,
    chroma_rows,
    code_rows,
    convention_rows,
    curve_rows,
    method_row,
    parts,
    pasted_rows,
)


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    latents = torch.randn(4, 4, 48, 48, generator=generator())
    return TableImages(vae=tiny_pipeline().vae, latents=latents, resamples=10, empirical_rate=0.8)


@pytest.fixture(scope="module")
def marking(images):
    """A decoder that adds a little brightness; its message is what its first image says."""
    decoder = copy_decoder(images.vae).eval()
    with torch.no_grad():
        decoder.decoder.conv_out.bias += 0.02
        message = (extract_logits(GridExtractor(), images.originals[:1])[0] > 0).float()
    return of_decoder("medsign-sharp", "MedSign", decoder, message, GridExtractor())


def test_method_row_has_every_column_with_its_interval(images, marking):
    (row,) = method_row(images, marking, generator())
    marked = marking.mark(images.originals, images.latents)
    assert row["psnr"] == pytest.approx(
        float(psnr(marked, images.originals, data_range=1.0).mean()), abs=1e-4
    )
    assert [r["attack"] for r in row["attacks"]] == [*PAPER_ATTACKS, "mean"]
    assert (row["row"], row["bits"], row["images"]) == ("medsign-sharp", 48, 4)
    for name in ("psnr", "ssim", "seconds"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert row["seconds"] > 0
    assert "unmarked_bit_accuracy" in row["attacks"][0]
    assert row["settings"] == marking.settings
    assert [r["attack"] for r in row["unmarked"]] == [*PAPER_ATTACKS]
    counted = row["unmarked"][0]["counted"]
    assert counted["false_positive_rate"] == 0.8 and counted["images"] == 4
    assert row["unmarked"][0]["rate"] == 1e-6 and 0 <= row["unmarked"][0]["fitted_rate"] <= 1


def test_curve_rows_meet_their_rungs(images, marking):
    rows = curve_rows(images, marking, (34.0, 40.0), generator())
    assert [row["psnr"] for row in rows] == pytest.approx([34.0, 40.0], abs=0.3)
    assert all(row["row"] == "medsign-sharp" and row["images"] == 4 for row in rows)


def test_curve_of_a_lattice_is_embedded_anew_for_each_rung(images):
    rows = curve_rows(images, dct_dwt(psnr=36.0), (32.0, 38.0), generator())
    # A residual scaled to half of its size lies between two bits, one of twice at the wrong one.
    assert all(row["none"] > 0.9 for row in rows)
    assert [row["psnr"] for row in rows] == pytest.approx([32.0, 38.0], abs=0.3)


def test_curve_of_a_slow_method_is_of_its_first_images(images):
    slow = replace(dct_dwt(psnr=36.0), curve_images=2)
    rows = curve_rows(images, slow, (32.0, 38.0), generator())
    whole = curve_rows(images, dct_dwt(psnr=36.0), (32.0, 38.0), generator())
    for row, other in zip(rows, whole, strict=True):
        assert row["images"] == 2 and len(row["accuracy_per_image"]) == 2
        assert row["accuracy_per_image"] == other["accuracy_per_image"][:2]
    found = parts(images, [slow, dct_dwt(psnr=36.0, plane="chroma")])
    assert found["curve-dct-dwt"].settings["images"] == 2
    assert "images" not in found["curve-dct-dwt-chroma"].settings


def test_convention_rows_compare_with_the_papers_reading(images, marking):
    rows = convention_rows(images, marking, generator())
    assert len(rows) == 2 * len(PAPER_ATTACKS) + len(CONVENTIONS)
    found = {(row["attack"], row["rounded"]): row for row in rows}
    for name in PAPER_ATTACKS:
        assert found[name, True]["change"] == found[name, True]["change_high"] == 0
    for name in CONVENTIONS:
        row = found[name, True]
        like = found[row["like"], True]
        assert row["change"] == pytest.approx(row["bit_accuracy"] - like["bit_accuracy"])
    assert {row["like"] for row in rows} == set(PAPER_ATTACKS)
    assert not {name for name, rounded in found if not rounded} - set(PAPER_ATTACKS)


def test_code_rows_trade_bits_for_whole_messages(images, marking):
    rows = code_rows(images, marking, generator())
    assert len(rows) == 3 * len(PAPER_ATTACKS)
    assert {row["code"]: row["payload"] for row in rows} == {
        "plain": 48, "repeated": 24, "golay": 24
    }  # fmt: skip
    for name in PAPER_ATTACKS:
        whole = {row["code"]: row["whole"] for row in rows if row["attack"] == name}
        assert whole["plain"] <= whole["repeated"] and whole["plain"] <= whole["golay"]
        assert all(row["whole_low"] <= row["whole"] <= row["whole_high"] for row in rows)
    assert whole.keys() == {"plain", "repeated", "golay"}


def test_pasted_rows_find_the_patch_and_nothing_else():
    class Dark(TableImages):
        originals = 0.3 * torch.rand(4, 3, 48, 48, generator=generator())

    dark = Dark(vae=None, latents=torch.zeros(4, 4, 6, 6), resamples=10)
    method = WatermarkMethod(
        key="wam-kind", title="bright is marked", message=torch.zeros(4), settings={},
        write=lambda image, latents, generator: torch.full_like(image, 0.8),
        read=lambda image: -image.mean(dim=(1, 2, 3))[:, None].expand(-1, 4),
        locate=lambda image: (image.mean(dim=1) > 0.5).float(),
    )  # fmt: skip
    plain, bright, jpeg = pasted_rows(dark, method, generator())
    assert (plain["iou"], plain["found"], plain["alarm"]) == (1, 1, 0)
    assert 0.04 < plain["area"] < 0.81 and plain["images"] == 4 and plain["bit_accuracy"] == 1
    assert bright["attack"] == "brightness" and bright["found"] == 1
    assert 0 < bright["alarm"] < 0.5 and bright["iou"] < 1  # some of the dark is bright now
    assert jpeg["attack"] == "jpeg" and jpeg["iou"] > 0.7  # its borders are blurred
    assert "pasted-wam-kind" in parts(dark, [method])
    assert "pasted-dct-dwt" not in parts(dark, [dct_dwt(psnr=36.0)])


def test_chroma_rows_show_what_a_grey_file_leaves(images):
    colour, grey = chroma_rows(images, 33.0, generator())
    assert (colour["file"], grey["file"]) == ("colour", "grey")
    assert colour["bit_accuracy"] > 0.9 and grey["bit_accuracy"] < 0.75
    assert grey["psnr"] > colour["psnr"] + 10  # hardly anything of it is left


def test_parts_are_named_after_the_row_and_say_what_they_depend_on(images, marking):
    methods = [dct_dwt(psnr=36.0), marking]
    found = parts(images, methods, ladder=(36.0,), conventions=("medsign-sharp",),
                  codes=("medsign-sharp",), chroma_psnr=36.0)  # fmt: skip
    assert list(found) == ["dct-dwt", "curve-dct-dwt", "medsign-sharp", "curve-medsign-sharp",
                           "conventions-medsign-sharp", "codes-medsign-sharp",
                           "chroma"]  # fmt: skip
    groups = {part.group for part in found.values()}
    assert groups == {"rows", "curves", "conventions", "codes", "chroma"}
    assert found["curve-dct-dwt"].settings["ladder"] == [36.0]
    assert found["medsign-sharp"].settings["method"] == marking.settings
    (row,) = found["medsign-sharp"].measure(images.generator("medsign-sharp"))
    assert row["method"] == "MedSign"


def test_images_are_marked_once_for_all_parts_of_a_method(images, marking):
    first, _ = images.drawn(marking)
    assert images.drawn(marking)[0] is first
    images.drawn(dct_dwt(psnr=36.0))
    assert images.drawn(marking)[0] is not first


def test_originals_are_rounded_and_config_names_contents(images):
    assert torch.equal(images.originals, quantise(images.originals))
    options = {"vae": images.vae, "resamples": 10, "empirical_rate": 0.8}
    other = TableImages(latents=images.latents + 1, **options).config()
    config = images.config()
    assert {name for name in config if config[name] != other[name]} == {"latents"}
    draws = [torch.rand(1, generator=images.generator(name)).item() for name in ("a", "b", "a")]
    assert draws[0] == draws[2] != draws[1]


def test_an_empirical_rate_needs_images_enough(images):
    options = {"vae": images.vae, "latents": torch.zeros(40, 1, 1, 1)}
    assert TableImages(**options).empirical_rate == 0.1  # 40 can state it, and nothing stricter
    assert TableImages(vae=images.vae, latents=images.latents).empirical_rate is None
    message = "rate of 1e-06 takes at least 2995731 unmarked images, got 40"
    with pytest.raises(ValueError, match=message):
        TableImages(**options, empirical_rate=1e-6)
    with pytest.raises(ValueError, match=r"a false-positive rate in \(0, 1\), got 2"):
        TableImages(**options, empirical_rate=2)


def test_images_too_small_for_the_message_are_refused_before_they_are_marked():
    small = torch.rand(1, 3, 64, 64)  # 64 blocks, and 25 of them after the crop
    message = "row dct-dwt: images of 64 x 64 pixels cannot be read after crop, which leaves 45"
    with pytest.raises(ValueError, match=message):
        check_readable(dct_dwt(psnr=36.0), small)
    check_readable(dct_dwt(psnr=36.0, bits=25), small)
