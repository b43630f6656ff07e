"""Every self-check of the notebooks accepts the solution and rejects typical wrong answers.

A wrong answer of the bank (`wrong_answers.py`) takes the place of the solution in its cell, then
the cell with the self-check runs, hidden tests included.
"""

import ast
import functools
import math
import re
import textwrap
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from medsign_lite.attacks import CONVENTIONS, PAPER_ATTACKS
from medsign_lite.detection import threshold
from medsign_lite.losses import (
    chest_weights,
    fundus_weights,
    preservation_loss,
    total_variation_loss,
)
from medsign_lite.selection import select_token
from medsign_lite.tables.claims import CLAIMS
from tests.wrong_answers import BANK

# scipy hands notebook 03's tensors to NumPy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION", re.M | re.S)
WRONG = [(exercise, mistake) for exercise in BANK for mistake in BANK[exercise]]


def read(stem: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)


def exercises_of(notebook: nbformat.NotebookNode) -> dict[str, tuple[str, str]]:
    """Cell id of each exercise to the sources of its solution and of the self-check after it."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = {}
    for cell, check in zip(code, [*code[1:], None], strict=True):
        if "BEGIN SOLUTION" in cell.source or cell.metadata.get("nbgrader", {}).get("solution"):
            graded = check is not None and check.metadata.get("nbgrader", {}).get("grade")
            found[cell.id] = (cell.source, check.source if graded else "")
    return found


EXERCISES = {
    f"{path.stem}/{cell}": sources
    for path in sorted(NOTEBOOKS.glob("*.ipynb"))
    for cell, sources in exercises_of(read(path.stem)).items()
}


def run_cells(stem: str, names: dict, *ids: str) -> None:
    """Run some earlier cells of a notebook, in the order given."""
    sources = {cell.id: cell.source for cell in read(stem).cells}
    for id in ids:
        exec(sources[id], names)


# What earlier cells would have left behind, per exercise; `torch` and `math` are always there.


def spots_and_clusters() -> dict:
    run = SimpleNamespace(generator=torch.Generator().manual_seed)
    some = torch.rand(4, 16, 16, generator=run.generator(0))
    names = {"torch": torch, "pd": pd, "run": run, "select_token": select_token, "maps": some}
    names["points"] = some.flatten()[:60].reshape(20, 3).double()
    run_cells("03_cas_and_aas", names, "by-hand", "spots")
    return names


def losses_and_weights() -> dict:
    return {
        "presets": {"chest": chest_weights(), "fundus": fundus_weights()},
        "preservation_loss": preservation_loss,
        "total_variation_loss": total_variation_loss,
    }


def binomial() -> dict:
    names = {"math": math}
    run_cells("06_evaluation", names, "binomial")
    return names


def attacks() -> dict:
    return {"PAPER_ATTACKS": PAPER_ATTACKS, "CONVENTIONS": CONVENTIONS}


SETUP = {
    "03_cas_and_aas/ex1": spots_and_clusters,
    "05_decoder_finetuning/ex2": losses_and_weights,
    "05_decoder_finetuning/ex3": losses_and_weights,
    "06_evaluation/ex1": binomial,
    "06_evaluation/ex2": lambda: {"threshold": threshold},
    "06_evaluation/ex3": attacks,
    "08_ablations_and_controls/ex3": lambda: {"CLAIMS": CLAIMS},
}


@functools.cache
def prepared(exercise: str) -> dict:
    """The names that an exercise finds, made once."""
    return {"torch": torch, "math": math} | SETUP.get(exercise, dict)()


def answer_with(solution: str, body: str) -> str:
    """The solution's cell with `body` between its markers, as a student would write it."""
    replaced, count = SOLUTION.subn(lambda m: textwrap.indent(body, m[1]), solution)
    assert count == 1, "expected one pair of BEGIN SOLUTION and END SOLUTION"
    return replaced


def self_check(exercise: str, answer: str) -> None:
    """Run an answer, then the exercise's self-check."""
    names = dict(prepared(exercise))
    exec(answer, names)
    exec(EXERCISES[exercise][1], names)


def test_bank_covers_every_exercise():
    assert set(BANK) == set(EXERCISES), "every exercise needs its wrong answers, and no other"
    assert set(SETUP) <= set(EXERCISES), "a setup without an exercise"
    few = [exercise for exercise, wrong in BANK.items() if len(wrong) < 2]
    assert not few, f"fewer than two wrong answers: {', '.join(few)}"


def test_exercises_of_finds_exercises_by_marker_and_by_metadata():
    graded = {"nbgrader": {"grade": True, "solution": False}}
    cells = [
        new_code_cell("x = 1"),
        new_code_cell("### BEGIN SOLUTION\ny = 2\n### END SOLUTION", id="marked"),
        new_markdown_cell("Between."),
        new_code_cell("assert y == 2, 'two'", metadata=graded),
        new_code_cell("z = 3", id="metadata", metadata={"nbgrader": {"solution": True}}),
    ]
    found = exercises_of(new_notebook(cells=cells))
    assert found == {"marked": (cells[1].source, cells[3].source), "metadata": ("z = 3", "")}


@pytest.mark.parametrize("exercise", EXERCISES)
def test_every_assertion_of_a_self_check_has_a_hint(exercise):
    asserts = [n for n in ast.walk(ast.parse(EXERCISES[exercise][1])) if isinstance(n, ast.Assert)]
    assert asserts, "no self-check follows the solution"
    bare = [ast.unparse(node) for node in asserts if node.msg is None]
    assert not bare, f"assertions without a sentence: {bare}"


@pytest.mark.parametrize("exercise", EXERCISES)
def test_self_check_accepts_the_solution(exercise):
    self_check(exercise, EXERCISES[exercise][0])


@pytest.mark.parametrize(("exercise", "mistake"), WRONG, ids=[f"{e}-{m}" for e, m in WRONG])
def test_self_check_rejects_a_wrong_answer_with_its_hint(exercise, mistake):
    body, hint = BANK[exercise][mistake]
    answer = answer_with(EXERCISES[exercise][0], body)
    with pytest.raises(AssertionError, match=re.escape(hint)):
        self_check(exercise, answer)
