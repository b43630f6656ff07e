"""Guards on the committed notebooks; what they compute is checked by running them."""

import ast
import json
import re
from pathlib import Path

import nbformat
import papermill
import pytest

from medsign_lite.runs import COMMON_PARAMETERS

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
LARGEST = 1.5e6  # bytes
PATHS = r"(?<![\w.}~])/(?:home|Users|root|work|mnt|tmp|farm)/\w|[A-Z]:\\Users"


def problems(path: Path) -> list[str]:
    """Everything that a committed notebook must not be, as sentences."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = []
    if path.stat().st_size > LARGEST:
        found.append(f"it has {path.stat().st_size / 1e6:.1f} MB, more than {LARGEST / 1e6} MB")
    if not notebook.cells or not notebook.cells[0].source.startswith("# "):
        found.append("it does not begin with a title")
    if notebook.metadata.get("widgets") or notebook.metadata.get("papermill"):
        found.append("it carries widget state or papermill's metadata")
    found += _opening_problems(path, code)
    if sum(_checks(cell) for cell in code) < 3:
        found.append("it has fewer than three cells that check something")
    for number, cell in enumerate(code, 1):
        found += [f"code cell {number}: {what}" for what in _cell_problems(cell)]
    if re.search(PATHS, json.dumps(notebook)):
        found.append("it contains an absolute path")
    return found


def _tagged(cell, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def _opening_problems(path: Path, code: list) -> list[str]:
    if not code or not _tagged(code[0], "parameters"):
        return ["its first code cell is not tagged 'parameters'"]
    if len(code) < 2 or not _tagged(code[1], "validate"):
        return ["its second code cell is not tagged 'validate'"]
    found = []
    for node in ast.parse(code[0].source).body:
        simple = isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(
            node.value, ast.Constant
        )
        if not simple:
            found.append(f"the parameters cell computes something: {ast.unparse(node)}")
    names = list(papermill.inspect_notebook(str(path)))
    missing = [name for name in COMMON_PARAMETERS if name not in names]
    if missing:
        found.append(f"it does not take the parameters {', '.join(missing)}")
    calls = [
        node
        for node in ast.walk(ast.parse(code[1].source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "open_run"
    ]
    if len(calls) != 1:
        return [*found, "its validating cell does not call open_run once"]
    call = calls[0]
    if [getattr(argument, "value", None) for argument in call.args] != [path.stem]:
        found.append(f"open_run must be told the notebook's own name, {path.stem}")
    handed = {keyword.arg for keyword in call.keywords} - {"own"}
    own = next((keyword.value for keyword in call.keywords if keyword.arg == "own"), None)
    handed |= {key.value for key in own.keys} if isinstance(own, ast.Dict) else set()
    if handed != set(names):
        found.append(f"open_run gets {sorted(handed)}, the parameters are {sorted(names)}")
    return found


def _checks(cell) -> bool:
    return bool(re.search(r"^\s*assert\b", cell.source, re.M)) or bool(
        cell.metadata.get("nbgrader", {}).get("grade")
    )


def _cell_problems(cell) -> list[str]:
    found = []
    if len(cell.source.splitlines()) > 40:
        found.append("more than 40 lines")
    if any(output.output_type == "error" for output in cell.outputs):
        if not _tagged(cell, "raises-exception"):
            found.append("its stored output is an error")
    if cell.outputs and cell.execution_count is None:
        found.append("outputs without an execution count: nbval would skip it")
    if _tagged(cell, "nbval-check-output") and not (cell.execution_count and cell.outputs):
        found.append("tagged nbval-check-output, but nothing is stored to compare with")
    return found


def sound(path: Path) -> nbformat.NotebookNode:
    """A small notebook that breaks no rule."""
    names = "".join(f'{name}: str = ""\n' for name in COMMON_PARAMETERS)
    handed = ", ".join(f"{name}={name}" for name in COMMON_PARAMETERS)
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell("# Title"),
        v4.new_code_cell(names, metadata={"tags": ["parameters"]}),
        v4.new_code_cell(
            f'run = open_run("{path.stem}", {handed})', metadata={"tags": ["validate"]}
        ),
        *(v4.new_code_cell(f"assert {i} < 9, 'a sentence'", execution_count=i) for i in (1, 2, 3)),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def _break(notebook, how: str) -> None:
    cells, output = notebook.cells, nbformat.v4.new_output
    if how == "no parameters":
        cells[1].metadata = {}
    elif how == "no validation":
        cells[2].metadata = {}
    elif how == "derived":
        cells[1].source += "steps = 2 * 3"
    elif how == "not handed on":
        cells[1].source += "word = 'edema'"
    elif how == "too few checks":
        cells[5].source = "x = 1"
    elif how == "error output":
        cells[3].outputs = [output("error", ename="ValueError", evalue="", traceback=[])]
    elif how == "no count":
        cells[3].outputs, cells[3].execution_count = [output("stream", text="1")], None
    elif how == "nothing to compare":
        cells[3].metadata["tags"] = ["nbval-check-output"]
    elif how == "path":
        cells[3].outputs = [output("stream", text="/ho" + "me/ann/x")]
    elif how == "size":
        cells[0].source += "x" * 1_600_000


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no parameters", "not tagged 'parameters'"),
        ("no validation", "not tagged 'validate'"),
        ("derived", "computes something: steps = "),
        ("not handed on", "open_run gets .* the parameters are .*word"),
        ("too few checks", "fewer than three"),
        ("error output", "stored output is an error"),
        ("no count", "without an execution count"),
        ("nothing to compare", "nothing is stored to compare with"),
        ("path", "absolute path"),
        ("size", "it has 1.6 MB"),
    ],
)
def test_each_guard_sees_what_it_guards_against(tmp_path, how, message):
    path = tmp_path / "01_a.ipynb"
    notebook = sound(path)
    nbformat.write(notebook, path)
    assert problems(path) == []
    _break(notebook, how)
    nbformat.write(notebook, path)
    assert re.search(message, "\n".join(problems(path)))


@pytest.mark.skipif(not NOTEBOOKS, reason="notebooks/ holds no notebook yet")
def test_notebooks_are_sound():
    found = [f"{path.name}: {problem}" for path in NOTEBOOKS for problem in problems(path)]
    assert not found, "\n".join(found)


@pytest.mark.skipif(not NOTEBOOKS, reason="notebooks/ holds no notebook yet")
def test_grade_ids_are_unique_within_a_notebook():
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        ids = [
            cell.metadata["nbgrader"]["grade_id"] for cell in cells if "nbgrader" in cell.metadata
        ]
        assert len(ids) == len(set(ids)), path.name
