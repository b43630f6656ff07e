"""The latents of the tables' images: which prompts, and that the same ones are drawn anywhere."""

import pytest
import torch
from tiny_pipeline import tiny_pipeline, tiny_tokenizer

from medsign_lite.data import Record, write_manifest
from medsign_lite.images import save_image
from medsign_lite.records import table_samples
from medsign_lite.records.table_samples import kept_samples, table_latents, table_records
from medsign_lite.results import read_result

REPORTS = ["no", "edema", "no edema", "effusion"]


def record(name, report):
    return Record(id=name, image=f"{name}.png", modality="chest", split="test", report=report)


def test_table_records_are_different_reports_behind_those_that_gates_use(monkeypatch):
    monkeypatch.setattr(table_samples, "RECORDED", 2)
    reports = ["no", "edema", "edema", "effusion", "no", "effusion", "no edema"]
    some = [record(str(i), report) for i, report in enumerate(reports)]

    def names(count):
        found = table_records(tiny_tokenizer(), some, modality="chest", count=count)
        return [r.id for r in found]

    assert names(1) == ["3"] and names(2) == ["3", "6"]
    assert names(3) == ["0", "1", "3"]  # too few behind: all are used
    assert names(5) == ["0", "1", "2", "3", "4"]  # nor are there so many different ones
    with pytest.raises(ValueError, match="8 chest reports are needed, .* has 7"):
        names(8)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A pipeline of one fixed seed, its records, and the folder that keeps its samples."""
    folder, pipeline = tmp_path_factory.mktemp("kept"), tiny_pipeline()
    pipeline.save_pretrained(folder / "pipeline")
    save_image(torch.rand(3, 16, 16), folder / "image.png")
    records = [
        Record(id=str(i), image=folder / "image.png", modality="chest", split="test", report=report)
        for i, report in enumerate(REPORTS)
    ]
    write_manifest(folder / "manifest.csv", records)
    table_samples.main([
        *("--modality", "chest", "--images", "4", "--data", str(folder / "manifest.csv")),
        *("--pipeline", str(folder / "pipeline"), "--work", str(folder / "work")),
        *("--out", str(folder / "table_samples_chest.json")),
    ])  # fmt: skip
    return pipeline, records, folder


def test_kept_samples_are_drawn_instead_of_sampling(kept, tmp_path, monkeypatch):
    pipeline, records, folder = kept
    sampled = table_latents(pipeline, records, tmp_path / "anew")
    monkeypatch.setattr(table_samples, "kept_samples", lambda *a: kept_samples(*a, folder))
    found = table_latents(pipeline, records, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert found.dtype == torch.float32 and found.shape == sampled.shape
    assert torch.equal(found, sampled)
    assert torch.equal(table_latents(pipeline, records[:2], tmp_path / "nowhere"), sampled[:2])
    document = read_result(folder / "table_samples_chest.json")
    assert document["values"]["prompts"] == REPORTS and document["config"]["images"] == 4
    assert str(folder) not in str(document)


def test_samples_of_other_prompts_or_another_pipeline_are_not_taken(kept):
    pipeline, _, folder = kept
    assert kept_samples(pipeline, [*REPORTS, "edema"], folder) is None
    assert kept_samples(pipeline, REPORTS[1:], folder) is None
    other = tiny_pipeline()
    with torch.no_grad():
        other.unet.conv_in.bias += 1
    assert kept_samples(other, REPORTS, folder) is None
    assert kept_samples(pipeline, REPORTS, folder / "work") is None


def test_samples_that_are_damaged_or_not_of_their_record_are_refused(kept, tmp_path):
    pipeline, _, folder = kept
    name = "table_samples_chest"
    (tmp_path / f"{name}.json").write_bytes((folder / f"{name}.json").read_bytes())
    with pytest.raises(ValueError, match=f"{name}.safetensors is missing or damaged"):
        kept_samples(pipeline, REPORTS, tmp_path)
    whole = (folder / f"{name}.safetensors").read_bytes()
    (tmp_path / f"{name}.safetensors").write_bytes(whole[:100])
    with pytest.raises(ValueError, match=f"{name}.safetensors is missing or damaged"):
        kept_samples(pipeline, REPORTS, tmp_path)
    changed = bytearray(whole)
    changed[-1] ^= 1
    (tmp_path / f"{name}.safetensors").write_bytes(changed)
    with pytest.raises(ValueError, match=f"other latents than {name}.json says"):
        kept_samples(pipeline, REPORTS, tmp_path)
