import pytest
import torch
from PIL import Image
from tiny_pipeline import tiny_pipeline

from medsign_lite.baselines.localised_watermark import LocalisedConfig, LocalisedWatermark
from medsign_lite.data import Record, write_manifest
from medsign_lite.latent_diffusion import copy_decoder, sample, save_decoder
from medsign_lite.records import table_samples
from medsign_lite.records.table_samples import TABLE_SEED
from medsign_lite.results import read_result, record_result
from medsign_lite.tables import paper_drawings
from medsign_lite.tables.paper_figures import pasted_figure


class Segmenter:
    """Sees a finding of this share of the image's rows, in its upper part."""

    def __init__(self, *shares):
        self.shares, self.asked = list(shares), []

    def mask(self, image, names):
        self.asked.append(names)
        mask = torch.zeros(1, 1, *image.shape[-2:], dtype=torch.bool)
        mask[..., : round(self.shares.pop(0) * image.shape[-2]), :] = True
        return mask


def record(number, report, modality="chest", words=("effusion",)):
    return Record(id=f"{modality}-{number}", image=f"{number}.png", modality=modality, split="test",
                  report=report, findings=words, words=words, sides=("left",) * len(words),
                  masks=(None,) * len(words))  # fmt: skip


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


def test_first_seen_takes_the_first_record_whose_finding_is_seen(pipeline):
    records = [record(0, "no edema", words=()), record(1, "an edema", words=("edema",)),
               record(2, "an effusion"), record(3, "effusion")]  # fmt: skip
    segmenter = Segmenter(0.0, 0.25)
    chosen, word, latents = paper_drawings.first_seen(pipeline, segmenter, records, steps=2)
    assert chosen is records[3]  # none named, a word of one token, not seen
    assert segmenter.asked == [["effusion"]] * 2
    assert word.tokens == ["ef", "fusion"] and len(word.attention) == 2
    assert word.mask.float().mean() == 0.25 and latents.shape[0] == 1
    # The latents of this record in the tables, which `table_latents` samples.
    expected = sample(pipeline, ["effusion"], seeds=[TABLE_SEED + 3], steps=2, guidance=3.0)
    assert torch.allclose(latents, expected, atol=1e-5)


def test_first_seen_refuses_where_nothing_is_seen(pipeline):
    with pytest.raises(ValueError, match="in none of 1 images the named finding is seen"):
        paper_drawings.first_seen(pipeline, Segmenter(1.0), [record(0, "effusion")], steps=2)


@pytest.mark.parametrize("earlier", [None, "0123456789ab"])  # the patch that was drawn before
def test_main_draws_both_figures_and_records_what_they_are_of(
    earlier, pipeline, tmp_path, monkeypatch
):
    monkeypatch.setattr(paper_drawings, "load_segmenter", lambda folder: Segmenter(0.25, 0.25))
    monkeypatch.setattr(table_samples, "RECORDED", 1)  # the gates' own, which the tables leave out
    weights, variants = tmp_path / "weights", tmp_path / "variants"
    pipeline.save_pretrained(weights / "pipeline")
    records = []
    for modality in ("chest", "fundus"):
        for number, report in enumerate(("an effusion", "effusion")):
            Image.new("L", (8, 8)).save(tmp_path / f"{number}.png")
            found = record(number, report, modality)
            fields = vars(found) | {"image": tmp_path / f"{number}.png"}
            records.append(Record(**fields))
        for folder in (weights / f"decoder_{modality}", variants / f"plain_{modality}"):
            save_decoder(folder, copy_decoder(pipeline.vae), {"message": "01"})
    write_manifest(tmp_path / "manifest.csv", records)
    out = tmp_path / "out"
    if earlier is not None:
        record_result(out / "paper_figures.json", {}, {"localised": earlier})
    paper_drawings.main([
        "--data", str(tmp_path / "manifest.csv"), "--out", str(out), "--weights", str(weights),
        "--decoder", f"Plain={variants}/plain_{{modality}}", "--steps", "2",
        "--images", "1", "--localised", str(tmp_path / "none"),
    ])  # fmt: skip
    for number in (2, 3):
        with Image.open(out / f"paper_fig{number}.png") as picture:
            assert picture.size[0] > 400
    document = read_result(out / "paper_figures.json")
    made = document["config"]["decoders"]
    assert [*made] == ["chest", "fundus"] and [*made["chest"]] == ["Plain", "MedSign"]
    assert all(len(name) == 12 for of in made.values() for name in of.values())
    assert document["config"]["images"] == 1 and document["config"]["localised"] == earlier
    assert not (out / "pasted_patch.png").exists()
    used = document["values"]["images"]
    assert [used[modality]["id"] for modality in used] == ["chest-1", "fundus-1"]
    assert str(tmp_path) not in str(document)


def test_a_patch_of_one_image_is_pasted_into_another():
    torch.manual_seed(0)
    watermark = LocalisedWatermark(LocalisedConfig(bits=8, channels=16)).eval()
    image, other = torch.rand(2, 3, 32, 32)
    found = paper_drawings.paste(watermark, image, other, title="chest")
    outside = ~found.patch
    assert torch.equal(found.picture[:, outside], other[:, outside])
    assert 0 < (found.picture - image)[:, found.patch].abs().max() < 0.2
    assert found.likely.shape == (32, 32)
    figure = pasted_figure([found, found])
    assert [ax.get_title() for ax in figure.axes[:2]] == ["chest: a patch is marked",
                                                          "likely marked"]  # fmt: skip


@pytest.mark.parametrize("pair", ["plain", "=folder_{modality}", "Plain=folder"])
def test_folders_are_named_with_their_modality(pair):
    with pytest.raises(ValueError, match="expected NAME=FOLDER with {modality} in the folder"):
        paper_drawings.named_folders([pair])
    assert paper_drawings.named_folders(["A B=x_{modality}"]) == {"A B": "x_{modality}"}


def test_compare_draws_the_same_latents_with_every_decoder(pipeline, tmp_path):
    decoder = copy_decoder(pipeline.vae)
    with torch.no_grad():
        decoder.decoder.conv_out.bias += 0.2
    save_decoder(tmp_path / "bright", decoder, {"message": "01"})
    save_decoder(tmp_path / "same", copy_decoder(pipeline.vae), {"message": "01"})
    _, word, latents = paper_drawings.first_seen(
        pipeline, Segmenter(0.25), [record(0, "effusion")], steps=2
    )
    folders = {name: tmp_path / name for name in ("same", "bright")}
    row = paper_drawings.compare(pipeline, word, latents, folders, title="chest")
    half_a_step = 0.5 / 255  # a decoder is stored in half floats: some pixels round otherwise
    assert (row.marked["same"] - row.original).abs().mean() < half_a_step
    assert (row.marked["bright"] - row.original).mean() > 0.05
    assert row.map.min() >= 0 and row.map.max() <= 1 and torch.equal(row.mask, word.mask)
