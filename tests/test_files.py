import errno
import os

import pytest

from medsign_lite import files
from medsign_lite.files import whole_file, whole_folder


def test_whole_file_writes_and_creates_the_folder(tmp_path):
    path = tmp_path / "new" / "a.bin"
    with whole_file(path) as file:
        file.write(b"abc")
        assert not path.exists()  # only when complete
    assert path.read_bytes() == b"abc"
    assert [f.name for f in path.parent.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=["error", "ctrl-c"])
def test_whole_file_keeps_the_old_version_when_interrupted(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), whole_file(path) as file:
        file.write(b"half of the new")
        raise error
    assert path.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["a.bin"]


def test_whole_folder_takes_the_place_of_an_earlier_one_when_complete(tmp_path):
    (tmp_path / ".a.part").mkdir()  # of a run that was killed
    (tmp_path / ".a.part" / "old").touch()
    for name in ("first", "second"):
        with whole_folder(tmp_path / "a") as part:
            (part / name).touch()
        assert [f.name for f in (tmp_path / "a").iterdir()] == [name]
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "a") as part:
        (part / "third").touch()
        raise KeyboardInterrupt
    assert [f.name for f in tmp_path.iterdir()] == ["a"]
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["second"]


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX systems")
def test_whole_file_that_is_private_is_its_owners_from_the_start(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    path.chmod(0o644)
    before = os.umask(0)
    try:
        with whole_file(path, private=True) as file:
            assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
            file.write(b"secret")
        with whole_file(tmp_path / "b.bin") as file:
            file.write(b"public")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_bytes() == b"secret"
    assert (tmp_path / "b.bin").stat().st_mode & 0o777 == 0o666


def fill_the_disk(monkeypatch):
    """Every file written from here on lies on a full disk (the kernel's own ENOSPC)."""
    monkeypatch.setattr(files, "open", lambda path, mode: open("/dev/full", mode), raising=False)


def test_whole_file_on_a_full_disk_names_path_and_remedy(tmp_path, monkeypatch):
    fill_the_disk(monkeypatch)
    with pytest.raises(OSError, match="no space left on the disk: free some.*a.bin") as caught:
        with whole_file(tmp_path / "a.bin") as file:
            file.write(b"x" * 10)  # stays in the buffer: the error comes on closing
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_whole_file_explains_a_full_disk_once_when_nested(tmp_path, monkeypatch):
    fill_the_disk(monkeypatch)
    with pytest.raises(OSError, match="inner") as caught:
        with whole_file(tmp_path / "outer"), whole_file(tmp_path / "inner") as inner:
            inner.write(b"x" * 100_000)
    assert str(caught.value).count("no space left") == 1
    assert list(tmp_path.iterdir()) == []
