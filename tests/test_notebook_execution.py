import base64
import io
import os
import sys

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from notebook_samples import write_notebook
from PIL import Image

from medsign_lite.notebook_execution import (
    WIDGET_VIEW,
    check_parameters,
    committed_form,
    current_kernel,
    error_report,
    execute,
    find_notebooks,
)


def test_find_notebooks_in_order_or_by_number(tmp_path):
    for name in ("02_b", "01_a", "03_c", "draft"):
        write_notebook(tmp_path / f"{name}.ipynb")
    assert [path.stem for path in find_notebooks(tmp_path)] == ["01_a", "02_b", "03_c"]
    assert [path.stem for path in find_notebooks(tmp_path, ["03", "01_a"])] == ["01_a", "03_c"]
    with pytest.raises(ValueError, match="no notebook '07' in .*: there are 01_a, 02_b, 03_c"):
        find_notebooks(tmp_path, ["07"])
    with pytest.raises(ValueError, match="no notebooks in .*: they come with the repository"):
        find_notebooks(tmp_path / "site-packages")


def test_check_parameters_refuses_a_misspelt_one(tmp_path):
    notebook = write_notebook(tmp_path / "01_a.ipynb")
    check_parameters(notebook, {"word": "effusion"})
    with pytest.raises(ValueError, match="unknown parameter wrod: 01_a accepts .*word"):
        check_parameters(notebook, {"wrod": "effusion"})


def test_execute_runs_here_with_this_interpreter_and_its_parameters(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nimport medsign_lite\n"
        "Path(run_folder, 'seen.txt').write_text("
        "'\\n'.join([sys.executable, os.getcwd(), word, medsign_lite.__version__]))"
    )
    source = write_notebook(tmp_path / "notebooks" / "01_a.ipynb", code)
    before = source.read_bytes()
    parameters = {"run_folder": str(tmp_path), "word": "effusion"}
    assert execute(source, tmp_path / "out" / "01_a.ipynb", parameters, timeout=600) == ""
    executable, folder, word, _ = (tmp_path / "seen.txt").read_text().splitlines()
    assert (executable, word) == (sys.executable, "effusion")
    assert os.path.samefile(folder, source.parent)
    assert source.read_bytes() == before
    assert not error_report(tmp_path / "out" / "01_a.ipynb").exists()


def test_execute_keeps_the_failed_notebook_with_error_and_stderr(tmp_path):
    code = "import sys\nprint('nearly there', file=sys.stderr)\nraise ValueError('mask is missing')"
    source = write_notebook(tmp_path / "01_a.ipynb", "x = 1", code)
    target = tmp_path / "out" / "01_a.ipynb"
    error = execute(source, target, {}, timeout=600)
    assert error.splitlines()[-1] == "ValueError: mask is missing"
    report = error_report(target).read_text()
    assert "mask is missing" in report and "nearly there" in report
    outputs = [
        o for cell in nbformat.read(target, as_version=4).cells for o in cell.get("outputs", [])
    ]
    assert any(output.output_type == "error" for output in outputs)


def test_execute_stops_a_cell_that_takes_too_long(tmp_path):
    source = write_notebook(tmp_path / "01_a.ipynb", "import time\ntime.sleep(30)")
    assert "timed out" in execute(source, tmp_path / "out" / "01_a.ipynb", {}, timeout=1).lower()


def test_current_kernel_restores_the_environment(monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "mine")
    with current_kernel():
        assert os.environ["JUPYTER_PATH"].endswith(os.pathsep + "mine")
    assert os.environ["JUPYTER_PATH"] == "mine"
    monkeypatch.delenv("JUPYTER_PATH")
    with current_kernel():
        assert "JUPYTER_PATH" in os.environ
    assert "JUPYTER_PATH" not in os.environ


def test_committed_form_drops_what_changes_and_keeps_what_teaches():
    widget = {WIDGET_VIEW: {"model_id": "1"}, "text/plain": "a slider"}
    nbgrader = {"grade": True, "grade_id": "task-1"}
    cells = [
        new_code_cell("profile = 'smoke'", metadata={"tags": ["injected-parameters"]}),
        new_code_cell(
            "1 + 1",
            execution_count=2,
            metadata={"tags": [], "papermill": {}, "execution": {}, "nbgrader": nbgrader},
            outputs=[
                new_output("stream", name="stderr", text="\r 10%\r 100%"),
                new_output("stream", name="stderr", text="a warning"),
                new_output("display_data", data=widget),
            ],
        ),
    ]
    metadata = {"papermill": {"input_path": "x"}, "widgets": {"state": {}}}
    notebook = committed_form(new_notebook(cells=cells, metadata=metadata))
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    (cell,) = notebook.cells
    assert cell.metadata == {"nbgrader": nbgrader} and cell.execution_count == 2
    warning, view = cell.outputs
    assert warning.text == "a warning" and view.data == {"text/plain": "a slider"}
    assert "papermill" in cells[1].metadata, "the argument was changed"
    nbformat.validate(notebook)


def png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def committed_png(figure: str) -> tuple[str, np.ndarray]:
    """A figure's PNG as it is committed, and the pixels it shows."""
    output = new_output("display_data", data={"image/png": figure})
    committed = committed_form(new_notebook(cells=[new_code_cell("1", outputs=[output])]))
    stored = committed.cells[0].outputs[0].data["image/png"]
    with Image.open(io.BytesIO(base64.b64decode(stored))) as shown:
        return stored, np.asarray(shown.convert("RGB"), dtype=int)


def test_committed_plots_are_smaller_and_look_the_same():
    """Grey lines with soft edges and one colour: few colours, most of them in few pixels."""
    across = np.linspace(0, 4 * np.pi, 256)
    soft = 255 * np.clip(np.abs(np.arange(256)[:, None] - 128 - 90 * np.sin(across)) / 3, 0, 1)
    colours = np.stack([soft, soft, np.clip(soft * 1.2, 0, 255)], axis=-1).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 2, colours.shape)
    figure = png(np.clip(colours + noise, 0, 255).astype(np.uint8))
    stored, shown = committed_png(figure)
    assert len(stored) < 0.6 * len(figure)
    assert np.abs(shown - colours).max() <= 8


def test_committed_figures_of_many_colours_keep_them():
    """A ramp in two colours over all of the image, and a small spot in a third."""
    ramp = np.linspace(0, 255, 256, dtype=np.uint8)
    down, across = np.meshgrid(ramp, ramp)
    colours = np.stack([down, across, np.full_like(down, 90)], axis=-1)
    colours[100:110, 100:110] = (250, 230, 30)
    noise = np.random.default_rng(0).integers(-4, 5, colours.shape)
    pixels = np.clip(colours.astype(int) + noise, 0, 255).astype(np.uint8)
    stored, shown = committed_png(png(pixels))
    assert len(stored) < 0.9 * len(png(pixels))
    assert np.abs(shown - pixels).max() <= 1, "a step of 3 levels is off by 1 at most"


def test_committed_grey_figures_are_exact():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    _, shown = committed_png(png(np.stack([grey] * 3, axis=-1)))
    assert np.array_equal(shown, np.stack([grey] * 3, axis=-1))
