"""Recorded results: JSON that carries the configuration, versions and hardware it came from."""

import errno
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from medsign_lite.files import whole_file

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "diffusers", "transformers", "kornia", "torchmetrics", "numpy", "pillow")


def record_result(path: str | Path, values: Mapping, config: Mapping) -> Path:
    """Write values and where they came from to a JSON file, through a temporary name.

    Args:
        path: file to write; its folder is made.
        values: the results. Numbers of numpy and torch, arrays and paths are converted; a number
            that is not finite becomes null, because JSON has no other word for it.
        config: everything needed to run it again: parameters, profile, seed.

    Returns:
        The path.

    Raises:
        OSError: if the disk is full, naming the file.
    """
    document = {
        "values": to_json(values),
        "config": to_json(config),
        "versions": versions(),
        "hardware": hardware(),
        "commit": commit(),
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return write_json(path, document)


def read_result(path: str | Path) -> dict:
    """The document that `record_result` wrote: values, config, versions, hardware, commit.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a recorded result.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recorded result at {path}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(document, dict) or not {"values", "config"} <= set(document):
        raise ValueError(f"{path} is not a recorded result: expected the keys values and config")
    return document


def write_json(path: str | Path, document: dict) -> Path:
    """Write a JSON file whole or not at all."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    with whole_file(path) as file:
        file.write(text.encode())
    return Path(path)


def check_space(folder: str | Path, megabytes: float) -> None:
    """Raise an OSError now if the disk of `folder` has less free space than will be needed."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**20
    if free < megabytes:
        raise OSError(
            errno.ENOSPC,
            f"not enough space: {megabytes:.0f} MB are needed and {free:.0f} MB are free. Free "
            "some, or choose another run_folder",
            str(folder),
        )


def to_json(value: object) -> object:
    """Plain JSON types from numpy and torch values, paths and dataclass dictionaries."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, bool | str | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path | torch.device):
        return str(value)
    if hasattr(value, "tolist"):  # torch.Tensor, numpy.ndarray and their scalars
        return to_json(value.tolist())
    raise TypeError(f"a result holds numbers, text, lists and dicts, got {type(value).__name__}")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that can change a figure."""
    found = {"python": platform.python_version(), "medsign_lite": _own_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _own_version() -> str:
    from medsign_lite import __version__

    return __version__


def hardware() -> str:
    """Processor or GPU, cores and memory in words; never the name of the machine."""
    parts = [f"{_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        parts.append(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    return "; ".join(parts)


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return 0.0


def commit() -> str | None:
    """The commit of the source, "+changes" added where it is edited; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        state = subprocess.run(
            # Results that were just recorded do not change what the next one is of.
            [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results"],
            capture_output=True, text=True,
        )  # fmt: skip
    except FileNotFoundError:  # git is not installed
        return None
    if head.returncode:
        return None
    return head.stdout.strip()[:12] + ("+changes" if state.stdout.strip() else "")
