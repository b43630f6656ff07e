"""Sets too large for memory: written in shards, joined on disk, read from where they lie.

A shard is a safetensors file whose tensors have the same first dimension. A killed build has
finished some shards and makes the others; joined, they are one ordinary safetensors file, which
`safetensors` maps into memory, so that only the rows that are used are ever read.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from medsign_lite.files import whole_file


def write_shard(path: str | Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors (n, ...) of one shard, whole or not at all."""
    content = to_safetensors({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    with whole_file(path) as file:
        file.write(content)
    return Path(path)


def join_shards(files: Sequence[str | Path], path: str | Path) -> Path:
    """Concatenate the tensors of shards along their first dimension, one shard at a time.

    Args:
        files: shards of the same names, types and shapes but for the first dimension, in order.
        path: the safetensors file to write, whole or not at all.

    Raises:
        ValueError: if there is no shard, or one is not like the first.
    """
    if not files:
        raise ValueError("expected at least one shard, got none")
    layouts = [_layout(file) for file in files]
    for file, layout in zip(files, layouts, strict=True):
        if {n: (t, s[1:]) for n, (t, s) in layout.items()} != {
            n: (t, s[1:]) for n, (t, s) in layouts[0].items()
        }:
            raise ValueError(f"{file} holds {layout}, not like {files[0]} with {layouts[0]}")
    header, offset = {}, 0
    for name, (dtype, shape) in layouts[0].items():
        total = [sum(layout[name][1][0] for layout in layouts), *shape[1:]]
        size = torch.Size(total).numel() * _width(files[0], name)
        header[name] = {"dtype": dtype, "shape": total, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns what follows
    with whole_file(path) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in header:
            for file in files:
                with safe_open(file, framework="pt") as shard:
                    rows = shard.get_tensor(name).contiguous()
                out.write(rows.flatten().view(torch.uint8).numpy().data)
    return Path(path)


def check_disk(folder: str | Path, needed: int) -> None:
    """Refuse to start what the disk cannot hold.

    Args:
        folder: existing or not.
        needed: bytes.

    Raises:
        OSError: saying what is needed and free.
    """
    folder = Path(folder).resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            f"{folder} needs {needed / 2**30:.2f} GiB on a disk with {free / 2**30:.2f} GiB free: "
            "free some or choose another folder"
        )


def _layout(file: str | Path) -> dict[str, tuple[str, list[int]]]:
    with safe_open(file, framework="pt") as shard:
        slices = {name: shard.get_slice(name) for name in sorted(shard.keys())}
        return {name: (s.get_dtype(), s.get_shape()) for name, s in slices.items()}


def _width(file: str | Path, name: str) -> int:
    with safe_open(file, framework="pt") as shard:
        return shard.get_tensor(name).element_size()
