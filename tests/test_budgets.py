"""Budgets of steps or minutes, counted over resumptions."""

import json

import pytest

from medsign_lite.training.budgets import Budget, log_row


def test_steps_run_out_after_a_resumption():
    budget = Budget(steps=4)
    budget.tick()
    budget.tick()
    assert budget.progress == 0.5
    resumed = Budget(steps=4, **budget.state())
    assert resumed.progress == 0.5 and resumed.seconds == budget.seconds
    resumed.tick()
    resumed.tick()
    assert resumed.progress == 1.0


def test_minutes_count_the_time_between_ticks(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("medsign_lite.training.budgets.time.monotonic", lambda: now[0])
    budget = Budget(minutes=2, seconds=30.0, step=7, _clock=now[0])
    now[0] += 30
    budget.tick()
    assert budget.seconds == 60 and budget.progress == 0.5 and budget.step == 8


def test_nothing_to_do_is_done():
    assert Budget(steps=0).progress == 1.0


@pytest.mark.parametrize("both", [{}, {"minutes": 1.0, "steps": 1}])
def test_exactly_one_is_given(both):
    with pytest.raises(ValueError, match="give either minutes or steps"):
        Budget(**both)


def test_log_row_appends(tmp_path):
    budget = Budget(steps=3)
    for _ in range(2):
        budget.tick()
        log_row(tmp_path, budget, {"loss": 0.25})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and rows[0]["loss"] == 0.25


@pytest.mark.parametrize("length", [{"steps": -5}, {"minutes": -1.0}, {"minutes": float("nan")}])
def test_budget_that_could_never_be_spent_is_refused(length):
    with pytest.raises(ValueError, match="minutes or steps of at least 0, got"):
        Budget(**length)
