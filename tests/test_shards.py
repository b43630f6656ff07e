"""Shards joined on disk are what torch would have concatenated in memory."""

import pytest
import torch
from safetensors.torch import load_file

from medsign_lite.shards import check_disk, join_shards, write_shard


def shard(rows: int) -> dict:
    return {
        "maps": torch.rand(rows, 3, 5).half(),
        "images": torch.randint(0, 256, (rows, 3, 2, 2), dtype=torch.uint8),
        "scores": torch.rand(rows),
        "bytes": torch.rand(rows, 3).bfloat16(),
    }


def test_joined_shards_are_the_concatenation(tmp_path):
    shards = [shard(rows) for rows in (3, 1, 4)]
    files = [write_shard(tmp_path / f"{i}.safetensors", some) for i, some in enumerate(shards)]
    joined = load_file(join_shards(files, tmp_path / "all.safetensors"))
    assert set(joined) == set(shards[0])
    for name, value in joined.items():
        assert torch.equal(value, torch.cat([some[name] for some in shards]))


def test_views_and_transposed_tensors_are_written_as_they_look(tmp_path):
    tensor = torch.rand(4, 2, 3).transpose(1, 2)[1:]
    file = write_shard(tmp_path / "0.safetensors", {"x": tensor})
    joined = load_file(join_shards([file, file], tmp_path / "all.safetensors"))["x"]
    assert torch.equal(joined, torch.cat([tensor, tensor]))


def test_shards_that_differ_are_refused(tmp_path):
    first = write_shard(tmp_path / "0.safetensors", {"x": torch.zeros(2, 3)})
    for number, other in enumerate(
        ({"x": torch.zeros(2, 4)}, {"x": torch.zeros(2, 3).half()}, {"y": torch.zeros(2, 3)})
    ):
        file = write_shard(tmp_path / f"other{number}.safetensors", other)
        with pytest.raises(ValueError, match="not like .*0.safetensors"):
            join_shards([first, file], tmp_path / "all.safetensors")
    assert not (tmp_path / "all.safetensors").exists()
    with pytest.raises(ValueError, match="at least one shard"):
        join_shards([], tmp_path / "all.safetensors")


def test_disk_that_is_too_small_is_named(tmp_path):
    check_disk(tmp_path / "not" / "yet", 1)
    with pytest.raises(OSError, match=r"yet needs 1073741824.00 GiB on a disk with \d+"):
        check_disk(tmp_path / "not" / "yet", 2**60)
