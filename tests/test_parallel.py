"""Work for many files."""

import pytest

from data_prep.parallel import in_parallel


def test_in_parallel_keeps_the_order_and_hands_out_a_window_at_a_time():
    started = []

    def work(number: int) -> int:
        started.append(number)
        return number * number

    walk = in_parallel(work, range(1000), workers=4, window=10)
    assert [next(walk) for _ in range(15)] == [number * number for number in range(15)]
    assert len(started) <= 20
    assert list(walk) == [number * number for number in range(15, 1000)]
    with pytest.raises(ValueError, match="at least one worker, got 0"):
        next(in_parallel(work, range(3), workers=0))
