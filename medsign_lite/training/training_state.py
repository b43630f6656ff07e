"""The state of an interrupted run, so that it goes on where it was saved last.

We wrote it ourselves, but somebody may have put another file in its place: it is a `torch.save`
file read with `weights_only=True`, and of the same settings or refused.
"""

import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from medsign_lite.files import whole_file


def save_training_state(path: str | Path, state: dict) -> Path:
    """Write what a killed run needs to resume: tensors in plain dicts, lists and numbers.

    Raises:
        ValueError: if something in it could not be read back safely (a numpy number, an object).
        OSError: if there is no space left (see `whole_file`).
    """
    _check_plain(state, "state")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with whole_file(path) as file:
        file.write(buffer.getbuffer())
    return Path(path)


def _check_plain(value: object, where: str) -> None:
    # Exact types: numpy.float64 is a float, too, but its pickle is refused on reading.
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_plain(entry, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, entry in enumerate(value):
            _check_plain(entry, f"{where}[{index}]")
    elif not isinstance(value, Tensor) and type(value) not in (int, float, bool, str, type(None)):
        raise ValueError(
            f"{where}: expected a tensor, number, string, list or dict, got {type(value).__name__}"
        )


def load_training_state(path: str | Path, *, settings: Mapping | None = None) -> dict | None:
    """Read what `save_training_state` wrote, on the CPU; None if there is no such file.

    Args:
        settings: what the run that is to be resumed must have under "settings".

    Raises:
        ValueError: if the file is truncated, holds more than tensors and plain values, or is of a
            run with other settings.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"training state {path}: expected a file written by save_training_state, got "
            f"{path.stat().st_size} bytes that cannot be read safely; remove it to start this "
            f"run from the beginning ({str(error).splitlines()[0] if str(error) else 'empty'})"
        ) from error
    if settings is not None:
        check_settings(state.get("settings", {}), settings, folder=path.parent)
    return state


def check_settings(saved: Mapping, settings: Mapping, *, folder: str | Path) -> None:
    """Refuse to go on with another run's work: half of each would be recorded as one of them.

    Args:
        saved, settings: what `plain_settings` returns.
        folder: where `saved` was found.

    Raises:
        ValueError: naming each setting that differs, what it was and what it is.
    """
    if saved != settings:
        differing = [
            f"{name} was {saved.get(name)!r}, is {settings.get(name)!r}"
            for name in {**saved, **settings}
            if saved.get(name) != settings.get(name)
        ]
        raise ValueError(f"{folder} holds a run with other settings: {'; '.join(differing)}")


def plain_settings(**settings: object) -> dict:
    """Settings as they are read back from a file: no tuples, string keys."""
    return json.loads(json.dumps(settings))
