"""Rows of figures: plain dicts in which every measured mean has its interval.

A mean `x` comes with `x_low` and `x_high`, its 95 % interval: a percentile bootstrap over images,
and for shares of yes and no the exact binomial one (Clopper-Pearson), which does not collapse when
every image is a yes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from scipy.stats import beta
from torch import Tensor

from medsign_lite.metrics import bootstrap_interval

Batches = Tensor | Iterable[Tensor]


def in_step(*sources: Batches, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
    """Walk several sources together: tensors are cut into batches, iterables taken as they come."""
    lengths = {len(source) for source in sources if isinstance(source, Tensor)}
    if len(lengths) > 1:
        raise ValueError(f"expected the same number of images everywhere, got {sorted(lengths)}")
    walks = [s.split(batch_size) if isinstance(s, Tensor) else s for s in sources]
    for batches in zip(*walks, strict=True):
        if len({len(batch) for batch in batches}) > 1:
            sizes = [len(batch) for batch in batches]
            raise ValueError(f"expected batches of one size in step, got {sizes}")
        yield batches


def mean_row(name: str, values: Tensor, *, resamples: int, generator: torch.Generator) -> dict:
    """{name, name_low, name_high} of values (N,), by bootstrap."""
    low, high = bootstrap_interval(values, resamples=resamples, generator=generator)
    return {name: float(values.double().mean()), f"{name}_low": low, f"{name}_high": high}


def share_row(name: str, hits: Tensor, *, images: int | None = None) -> dict:
    """{name, name_low, name_high} of hits (N,) bool: the share, with its exact interval.

    Args:
        images: that the hits are of, if several are of one: they are not independent of each other,
            and the interval is that of as many trials as there are images.
    """
    share = float(hits.double().mean())
    trials = len(hits) if images is None else images
    low = beta.ppf(0.025, share * trials, (1 - share) * trials + 1) if share > 0 else 0.0
    high = beta.ppf(0.975, share * trials + 1, (1 - share) * trials) if share < 1 else 1.0
    return {name: share, f"{name}_low": float(low), f"{name}_high": float(high)}


def with_interval(row: Mapping, name: str) -> dict:
    """{"value", "low", "high"} of a row's figure, as results are recorded.

    Without an interval, both ends are the value itself.
    """
    ends = {end: row.get(f"{name}_{end}", row[name]) for end in ("low", "high")}
    return {"value": row[name], **ends}


def table(rows: Sequence[dict] | dict, columns: Sequence[str] | None = None, *, decimals: int = 3):
    """Rows as a pandas DataFrame of text, intervals beside their means: "0.98 [0.97, 0.99]".

    Args:
        rows: dicts; a single one is one row.
        columns: names of what to show, in order; default all.
        decimals: of measured numbers.
    """
    from pandas import DataFrame  # slow to import

    rows = [rows] if isinstance(rows, dict) else list(rows)
    known = list(dict.fromkeys(key for row in rows for key in row))
    bounds = {f"{key}_{end}" for key in known for end in ("low", "high")}
    columns = [key for key in known if key not in bounds] if columns is None else list(columns)
    missing = [name for name in columns if name not in known]
    if missing:
        raise ValueError(f"no column {missing[0]!r} in the rows; there are {', '.join(known)}")
    cells = [[_cell(row, name, decimals) for name in columns] for row in rows]
    return DataFrame(cells, columns=columns)


def _cell(row: dict, name: str, decimals: int) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    text = _fixed(value, decimals)
    if f"{name}_low" in row:
        ends = (_fixed(row[f"{name}_{end}"], decimals) for end in ("low", "high"))
        text += f" [{', '.join(ends)}]"
    return text


def _fixed(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # no -0.000
