"""The same work for many files, by threads.

Threads and not processes: Pillow lets go of Python's lock while it decodes, resizes and encodes, as
the system does while it waits for a disk, and a thread starts at once and copies nothing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

WINDOW = 1024  # jobs handed out at a time; 100,000 at once would be 100,000 waiting objects


def in_parallel(
    work: Callable, items: Sequence, *, workers: int | None = None, window: int = WINDOW
) -> Iterator:
    """`work` of every item in order, by threads, a window of items at a time.

    Raises:
        ValueError: for fewer than one worker.
    """
    if workers is None:
        try:
            workers = len(os.sched_getaffinity(0))  # fewer than the machine's in a batch job
        except AttributeError:  # not on Windows and macOS
            workers = os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"expected at least one worker, got {workers}")
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), window):
            yield from pool.map(work, items[start : start + window])
