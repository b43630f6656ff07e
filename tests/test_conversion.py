"""What all data sets share: splits that are filled, runs that go on, disks that fill."""

import errno
import itertools
from pathlib import Path

import pytest
from PIL import Image

from data_prep.conversion import Source, Summary, convert
from medsign_lite.data import load_mask, read_manifest
from tests.source_folders import noise, save, truncate


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve images of twelve patients."""
    for number in range(12):
        save(tmp_path / "source" / f"Doe_{number:02d}.png", noise(40, 40, seed=number))
    return tmp_path / "source"


def listed(source: Path, **options) -> list[Source]:
    return [
        Source(path=path, split="test" if number % 3 == 2 else "train", report=path.stem[-2:],
               patient=path.stem, **options)
        for number, path in enumerate(sorted(source.iterdir()))
    ]  # fmt: skip


def converted(sources: list[Source], source: Path, out: Path, **options) -> tuple[Path, Summary]:
    summary = Summary()
    options = {"modality": "chest", "size": 32, "seed": 0, "progress": False} | options
    return convert(sources, source, out, summary=summary, **options), summary


def test_convert_fills_the_splits_that_are_wanted(source, tmp_path):
    path, summary = converted(
        listed(source), source, tmp_path / "out", wanted={"train": 5, "validation": 0}
    )
    assert summary.kept == {"train": 5, "test": 4}
    assert summary.dropped == {"left over: its split is full": 3}
    assert not summary.remarks
    assert len(list((tmp_path / "out" / "images").iterdir())) == 9  # what is left over is not read
    assert len(read_manifest(path)) == 9


def test_convert_replaces_unusable_images_of_a_full_split(source, tmp_path):
    whole, _ = converted(listed(source), source, tmp_path / "a", wanted={"train": 5})
    chosen = [r.report for r in read_manifest(whole) if r.split == "train"]
    truncate(source / f"Doe_{chosen[0]}.png")
    path, summary = converted(listed(source), source, tmp_path / "b", wanted={"train": 5})
    again = [r.report for r in read_manifest(path) if r.split == "train"]
    assert summary.kept["train"] == 5 and set(chosen[1:]) < set(again)
    assert summary.dropped["truncated, damaged, or not an image"] == 1


def test_convert_says_when_fewer_are_there(source, tmp_path):
    _, summary = converted(
        listed(source), source, tmp_path / "out", wanted={"train": 6000, "test": 4}
    )
    assert summary.remarks == ["6000 train images were asked for, 8 are there"]
    assert "kept 12 (8 train, 0 validation, 4 test), dropped 0" in str(summary)
    assert "note: 6000 train images" in str(summary)


def test_convert_writes_the_same_whatever_the_number_of_workers(source, tmp_path):
    paths = [
        converted(listed(source), source, tmp_path / str(workers), workers=workers)[0]
        for workers in (1, 5)
    ]
    for file in [p.relative_to(paths[0].parent) for p in paths[0].parent.rglob("*.*")]:
        one, other = (path.parent / file for path in paths)
        assert one.read_bytes() == other.read_bytes()


def test_convert_draws_boxes_into_masks(source, tmp_path):
    boxes = (
        ("effusion", (0.0, 0.0, 0.5, 0.5)),
        ("effusion", (0.5, 0.5, 0.5, 0.5)),
        ("pneumonia", (0.0, 0.0, 1.0, 1.0)),  # no finding of the image
        ("lung mass", (0.5, 0.5, 0.0, 0.0)),  # nothing is left of it
    )
    names = ("edema", "effusion", "lung mass")
    sources = listed(source, findings=names, words=("", "", ""), boxes=boxes)
    path, _ = converted(sources, source, tmp_path / "out")
    text = path.read_text()
    for record in read_manifest(path):
        assert record.masks[0] is None and record.masks[2] is None
        mask = load_mask(record.masks[1])
        assert mask[:16, :16].all() and mask[16:, 16:].all() and mask.sum() == 512
    path.unlink()
    converted(sources, source, tmp_path / "out")  # finds the same masks again
    assert path.read_text() == text


def fails_at(count: int, error: OSError, monkeypatch) -> None:
    """Saving an image raises from the given one on."""
    counter = itertools.count()
    original = Image.Image.save

    def save(self, *arguments, **options):
        if next(counter) >= count:
            raise error
        return original(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", save)


def test_convert_names_a_full_disk_and_goes_on_later(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fails_at(5, OSError(errno.ENOSPC, "No space left on device"), patch)
        with pytest.raises(OSError, match="no space left on the disk: free some .* run again") as e:
            converted(listed(source), source, out, workers=2)
        assert e.value.errno == errno.ENOSPC and "Doe" not in str(e.value)
    finished = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    assert len(finished) == 5 and not (out / "manifest.csv").exists()
    assert all(path.suffix == ".png" for path in finished)  # whole ones only
    path, summary = converted(listed(source), source, out)
    assert summary.kept.total() == len(read_manifest(path)) == 12
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())


def test_convert_goes_on_after_it_was_killed(source, tmp_path, monkeypatch):
    expected, _ = converted(listed(source), source, tmp_path / "other")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fails_at(5, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            converted(listed(source), source, out, workers=1)
    half = out / "images" / ".000007.png.4711.part"  # what a killed process leaves
    half.write_bytes(b"half an image")
    path, _ = converted(listed(source), source, out)
    assert path.read_bytes() == expected.read_bytes()
    assert not half.exists()


def test_convert_refuses_a_conversion_of_other_samples(source, tmp_path):
    converted(listed(source), source, tmp_path / "out", wanted={"train": 5})
    with pytest.raises(ValueError, match=r"another conversion \(other wanted, images, digest\)"):
        converted(listed(source), source, tmp_path / "out", wanted={"train": 6})
    with pytest.raises(ValueError, match=r"another conversion \(other digest\)"):
        converted(listed(source, shape=(40, 40)), source, tmp_path / "out", wanted={"train": 5})


def test_convert_refuses_a_patient_in_two_splits(source, tmp_path):
    sources = [*listed(source), Source(path=source / "b.png", split="test", patient="Doe_00")]
    with pytest.raises(ValueError, match="of 1 patients are in more than one split"):
        converted(sources, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_convert_without_a_usable_image_says_why(source, tmp_path):
    with pytest.raises(ValueError, match="no image to convert in"):
        converted([], source, tmp_path / "out")
    with pytest.raises(ValueError, match="(?s)no image of .* could be used: .*12: smaller than 64"):
        converted(listed(source), source, tmp_path / "out", size=64)
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_convert_refuses_negative_numbers(source, tmp_path):
    with pytest.raises(ValueError, match="expected numbers of images, got .*'test': -1"):
        converted(listed(source), source, tmp_path / "out", wanted={"test": -1})


def test_convert_leaves_names_out_when_it_may_not_look(source, tmp_path, monkeypatch):
    sources = listed(source)

    def denied(self, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", denied)
        with pytest.raises(PermissionError, match="an image cannot be read: Perm") as caught:
            converted(sources, source, tmp_path / "out")
    assert "Doe" not in str(caught.value)


def test_convert_drops_images_that_are_missing_or_of_another_size(source, tmp_path):
    sources = listed(source, shape=(40, 40))
    save(source / "Doe_03.png", noise(40, 48))
    (source / "Doe_04.png").unlink()
    _, summary = converted(sources, source, tmp_path / "out")
    assert summary.dropped == {"of another size than its table says": 1, "its image is missing": 1}
