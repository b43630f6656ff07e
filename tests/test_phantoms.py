"""Phantom data sets: files, manifest, and splits that share no patient."""

import numpy as np
import pytest
from PIL import Image

from data_prep.phantoms import FIRST_SEED, main, phantom, write_phantoms
from medsign_lite.data import ManifestDataset, read_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    return write_phantoms(folder, train=6, validation=2, test=2, size=64, workers=1, progress=False)


def test_manifest_is_valid_and_complete(manifest):
    records = read_manifest(manifest)
    counts = {(m, s): 0 for m in ("chest", "fundus") for s in FIRST_SEED}
    for record in records:
        counts[record.modality, record.split] += 1
    assert set(counts.values()) == {2, 6}
    assert len({record.id for record in records}) == 20


def test_files_are_the_phantoms_themselves(manifest):
    for record in read_manifest(manifest)[::5]:
        index = int(record.id.rsplit("-", 1)[1])
        drawn = phantom(record.modality, record.split, index, size=64)
        with Image.open(record.image) as image:
            assert np.array_equal(np.array(image), drawn.image)
        assert record.report == drawn.report
        for path, mask in zip(record.masks, drawn.masks, strict=True):
            with Image.open(path) as image:
                assert np.array_equal(np.array(image) > 0, mask)


def test_dataset_reads_them(manifest):
    dataset = ManifestDataset(read_manifest(manifest), split="train")
    for item in dataset:
        assert item["image"].shape == (3, 64, 64)
        # A finding has a mask, and only a finding has one.
        assert ((item["masks"].sum(dim=(1, 2)) > 0) == (item["labels"] > 0)).all()


def test_splits_are_different_patients():
    images = [phantom("chest", split, 0, size=64).image for split in FIRST_SEED]
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[1], images[2])


def test_workers_draw_the_same(manifest, tmp_path):
    again = write_phantoms(
        tmp_path, train=6, validation=2, test=2, size=64, workers=2, progress=False
    )
    assert again.read_text() == manifest.read_text()
    for record, other in zip(read_manifest(manifest), read_manifest(again), strict=True):
        assert record.image.read_bytes() == other.image.read_bytes()


def test_command_line(tmp_path, capsys):
    options = ["--train", "1", "--validation", "0", "--test", "0", "--size", "32"]
    main(["--out", str(tmp_path), *options, "--modalities", "fundus", "--workers", "1"])
    assert "1 phantoms described in" in capsys.readouterr().out
    assert [record.modality for record in read_manifest(tmp_path)] == ["fundus"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("knee", "train", 0), "modality must be one of"),
        (("chest", "exam", 0), "split must be one of"),
        (("chest", "train", -1), "index must not be negative, got -1"),
    ],
)
def test_phantom_refuses(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        phantom(*arguments)


def test_write_phantoms_that_is_killed_leaves_no_manifest_and_no_half_image(tmp_path, monkeypatch):
    options = {"train": 2, "validation": 0, "test": 0, "size": 32, "modalities": ("chest",),
               "workers": 1, "progress": False}  # fmt: skip
    manifest = write_phantoms(tmp_path, **options)
    images = sorted((tmp_path / "images" / "chest").iterdir())
    before = [image.read_bytes() for image in images]
    save = Image.Image.save

    def stop(image, file, **options):
        save(image, file, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path, **options)
    assert not manifest.exists()
    assert sorted((tmp_path / "images" / "chest").iterdir()) == images
    assert [image.read_bytes() for image in images] == before
    with pytest.raises(FileNotFoundError, match="no manifest"):
        read_manifest(tmp_path)


def test_write_phantoms_refuses_before_writing(tmp_path):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("as it was")
    with pytest.raises(ValueError, match="positive sum"):
        write_phantoms(tmp_path / "none", train=0, validation=0, test=0)
    with pytest.raises(ValueError, match="modality must be one of"):
        write_phantoms(tmp_path / "knee", modalities=("knee",))
    with pytest.raises(ValueError, match="modality must be one of"):
        write_phantoms(tmp_path, modalities=("knee",))
    assert manifest.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [manifest]
