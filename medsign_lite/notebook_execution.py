"""Execute a notebook by papermill, and bring it into the form in which it is committed."""

import base64
import contextlib
import copy
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nbformat
import numpy as np
import papermill
from nbformat import NotebookNode
from PIL import Image

from medsign_lite.results import ROOT

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
_ALIKE = 8  # levels of 255: nobody tells colours apart that are nearer
_FEW = 0.001  # of a figure's pixels, which may be further off in 256 colours


def find_notebooks(folder: Path, chosen: Sequence[str] = ()) -> list[Path]:
    """The numbered notebooks of a folder in order, or those whose names start with `chosen`.

    Raises:
        ValueError: if a chosen one does not exist, listing those that do, or there is none at all.
    """
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise ValueError(
            f"no notebooks in {folder}: they come with the repository, not with the package"
        )
    names = ", ".join(path.stem for path in paths)
    for prefix in chosen:
        if not any(path.stem.startswith(prefix) for path in paths):
            raise ValueError(f"no notebook {prefix!r} in {folder}: there are {names}")
    return [path for path in paths if not chosen or path.stem.startswith(tuple(chosen))]


def check_parameters(notebook: Path, parameters: Mapping[str, object]) -> None:
    """Refuse a parameter that the notebook's `parameters` cell does not define.

    papermill itself only warns, and then runs the defaults.
    """
    accepted = list(papermill.inspect_notebook(str(notebook)))
    unknown = sorted(set(parameters) - set(accepted))
    if unknown:
        raise ValueError(
            f"unknown parameter {', '.join(unknown)}: {notebook.stem} accepts {', '.join(accepted)}"
        )


def execute(source: Path, target: Path, parameters: Mapping[str, object], timeout: int) -> str:
    """Run one notebook in its own folder; returns "" or the error. The executed copy is kept.

    Args:
        source: the notebook.
        target: where the executed copy goes; a failure also writes <target>.error.txt.
        parameters: to inject; none are injected if this is empty.
        timeout: seconds that one cell may take.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    report = error_report(target)
    report.unlink(missing_ok=True)
    try:
        with current_kernel():
            papermill.execute_notebook(
                str(source),
                str(target),
                parameters=dict(parameters),
                kernel_name="python3",
                cwd=str(source.parent),
                execution_timeout=timeout,
                start_timeout=180,
                progress_bar=False,
            )
    except Exception as error:  # whatever stopped it is written down, told and shown on the page
        message = f"{type(error).__name__}: {str(error).strip()}"
        text = f"{message}\n\n--- stderr of the notebook ---\n{_stderr(target)}"
        report.write_text(text, encoding="utf-8")
        return message
    return ""


def error_report(target: Path) -> Path:
    """Where the error of a failed notebook is kept, beside its executed copy."""
    return target.with_suffix(".error.txt")


@contextlib.contextmanager
def current_kernel() -> Iterator[None]:
    """Make "python3" mean this interpreter, whatever kernels the user has installed.

    The kernel finds the package in the repository even where it is not installed.
    """
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as folder:
        kernel = Path(folder) / "kernels" / "python3"
        kernel.mkdir(parents=True)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        specification = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "Python 3",
            "language": "python",
            "env": {"PYTHONPATH": os.pathsep.join(paths)},
        }
        (kernel / "kernel.json").write_text(json.dumps(specification), encoding="utf-8")
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))
        try:
            yield
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before


def _stderr(path: Path) -> str:
    if not path.is_file():
        return "(no cell was run)\n"
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.get("name") == "stderr")


def committed_form(notebook: NotebookNode) -> NotebookNode:
    """An executed notebook without what changes from run to run or is of no use to a reader.

    Gone: papermill's metadata and injected cell, timings, widget state and views (the widgets'
    static twins stay), and progress bars. Kept: outputs, execution counts, nbgrader's metadata;
    figures in fewer colours where that does not show, so that a notebook stays small.
    """
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.cells = [
        cell
        for cell in notebook.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        for key in ("papermill", "execution", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
            for output in cell.outputs:
                data = output.get("data", {})
                data.pop(WIDGET_VIEW, None)
                if "image/png" in data:
                    data["image/png"] = _smaller_png(data["image/png"])
    return notebook


def _smaller_png(encoded: str) -> str:
    """A figure in 256 colours, or in more where those would be other colours than it has.

    A plot or a grey picture loses nothing. A coloured map has thousands of colours, and the few
    bright ones of a small spot are left out of a palette: such a figure keeps all of its colours,
    in steps of 3 levels, which nobody sees and which makes it a third smaller.
    """
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as opened:
        figure = opened.convert("RGB")
    pixels = np.asarray(figure)
    smaller = figure.quantize(256, dither=Image.Dither.NONE, kmeans=2)
    apart = np.abs(np.asarray(smaller.convert("RGB"), dtype=int) - pixels).max(axis=-1)
    if (apart > _ALIKE).mean() > _FEW:
        smaller = Image.fromarray(((pixels.astype(int) + 1) // 3 * 3).astype(np.uint8))
    buffer = io.BytesIO()
    smaller.save(buffer, "PNG", optimize=True)
    return min(base64.b64encode(buffer.getvalue()).decode(), encoded, key=len)


def _is_progress(output: NotebookNode) -> bool:
    return output.output_type == "stream" and output.name == "stderr" and "\r" in output.text
