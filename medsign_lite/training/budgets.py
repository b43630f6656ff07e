"""How long a training run may take: a time or a number of steps, counted over all resumptions."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(kw_only=True)
class Budget:
    """Either ``minutes`` or ``steps``, and how much of it is spent.

    >>> budget = Budget(steps=2)
    >>> while budget.progress < 1:
    ...     budget.tick()
    >>> budget.step
    2
    """

    minutes: float | None = None
    steps: int | None = None
    step: int = 0
    seconds: float = 0.0
    _clock: float = field(default_factory=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError(
                f"give either minutes or steps, got minutes={self.minutes}, steps={self.steps}"
            )
        length = self.minutes if self.steps is None else self.steps
        if not length >= 0:  # nor not a number
            raise ValueError(f"expected minutes or steps of at least 0, got {length}")

    @property
    def progress(self) -> float:
        """Share of the budget that is spent; 1 or more is all of it."""
        spent, total = (
            (self.step, self.steps) if self.steps is not None else (self.seconds, self.minutes * 60)
        )
        return spent / total if total else 1.0

    def tick(self) -> None:
        """Count one step, and the time since the last."""
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        self.step += 1

    def state(self) -> dict:
        """What a resumed run is given back: ``Budget(minutes=..., **state)``."""
        return {"step": self.step, "seconds": self.seconds}


def log_row(folder: Path, budget: Budget, values: dict) -> None:
    """Append one line to the folder's ``log.jsonl``: step, minutes, and these values."""
    row = {"step": budget.step, "minutes": round(budget.seconds / 60, 3), **values}
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
