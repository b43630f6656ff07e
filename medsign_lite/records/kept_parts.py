"""Measurements in parts, each kept as soon as it is finished: a run that was killed goes on."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from medsign_lite.results import read_result, record_result, to_json


class Measured(Protocol):
    """What parts are measured of: it knows its configuration and draws each part's numbers."""

    def config(self) -> dict: ...

    def generator(self, name: str) -> torch.Generator: ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a table that is computed and kept by itself.

    group: of rows in the result. settings: what its rows depend on beside the target.
    """

    group: str
    settings: dict
    measure: Callable[[torch.Generator], list[dict]]


def kept_path(folder: Path, name: str, config: Mapping) -> Path:
    """Where a part is kept: what it was measured of is in the name, so that other weights or
    settings have a file of their own, and the old one is still there when they come back."""
    text = json.dumps(to_json(config), sort_keys=True)
    return folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def kept(
    folder: Path, name: str, config: Mapping, measure: Callable[[], Mapping], *, again: bool = False
) -> dict:
    """The document of a part that was measured with a configuration, or is measured now.

    Args:
        again: measure it in any case.
    """
    path = kept_path(folder, name, config)
    if again or not path.is_file():
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        record_result(path, measure(), config)
    return read_result(path)


def measure_parts(
    target: Measured,
    chosen: Mapping[str, Part],
    *,
    keep: Path,
    command: str = "",
    again: bool = False,
) -> dict[str, list[dict]]:
    """Rows by group of the chosen parts; each finished one is kept in a folder and not repeated.

    Each row says when and at which commit it was "measured", and with a `command` how its part is
    measured alone: `command` and the part's name.

    Args:
        again: measure also what is kept.
    """
    groups: dict[str, list[dict]] = {}
    config = target.config()  # hashes weights
    for name, part in chosen.items():
        document = kept(
            keep,
            name,
            config | part.settings,
            lambda name=name, part=part: {"rows": part.measure(target.generator(name))},
            again=again,
        )
        about = {"measured": f"{document['recorded']} at {document['commit']}"}
        about |= {"command": f"{command} --only {name}"} if command else {}
        rows = document["values"]["rows"]
        groups.setdefault(part.group, []).extend(row | about for row in rows)
    return groups
