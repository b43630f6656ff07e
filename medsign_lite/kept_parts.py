"""Measurements in parts, each kept as soon as it is finished: a run that was killed goes on."""

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


def kept(path: Path, config: Mapping, measure: Callable[[], Mapping]) -> dict:
    """The values in a recorded file, or, if it is not there, those measured and recorded now.

    Raises:
        ValueError: if the file is of another configuration.
    """
    config = to_json(config)
    if not path.is_file():
        print(f"measuring {path.stem} ...", file=sys.stderr, flush=True)
        record_result(path, measure(), config)
    document = read_result(path)
    if document["config"] != config:
        raise ValueError(
            f"{path} was measured with another configuration: {document['config']}, now {config}"
        )
    return document["values"]


def measure_parts(
    target: Measured, chosen: Mapping[str, Part], *, keep: Path, command: str = ""
) -> dict[str, list[dict]]:
    """Rows by group of the chosen parts; each finished one is kept in a folder and not repeated.

    With a `command` each row says how its part is measured alone: `command` and the part's name.

    Raises:
        ValueError: if a kept part is of another target or of other settings.
    """
    groups: dict[str, list[dict]] = {}
    for name, part in chosen.items():
        values = kept(
            keep / f"{name}.json",
            target.config() | part.settings,
            lambda name=name, part=part: {"rows": part.measure(target.generator(name))},
        )
        alone = {"command": f"{command} --only {name}"} if command else {}
        groups.setdefault(part.group, []).extend(row | alone for row in values["rows"])
    return groups
