"""What a step of the workflow depends on besides its files: its own code, and the library's.

A time of change says little about code: a fresh checkout changes all of them, an edited comment
line one. So every step carries a digest of the source that it runs, which Snakemake compares like
any other parameter. Nothing here is heavy: Snakemake reads the workflow once more for every job.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import medsign_lite

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("medsign_lite", "data_prep", "workflow")
_RECORDED = ("table1", "table2", "attacker")  # what notebooks read of results/, by modality
_LARGE = 64 * 2**20  # bytes; larger files are told apart by size and time, not by content


def notebooks_in(folder: Path) -> dict[str, Path]:
    """Name to path of the numbered notebooks of a folder, in order.

    Raises:
        ValueError: if there is none.
    """
    found = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise ValueError(f"no numbered notebook (such as 01_name.ipynb) in {folder}")
    return found


def code_of(notebook: Path) -> list[str]:
    """The source of a notebook's code cells; its prose and outputs do not matter to a result."""
    return [source for source, _ in _code_cells(notebook)]


def parameters_of(notebook: Path) -> set[str]:
    """The names that the cell tagged `parameters` defines."""
    names = set()
    for source, tags in _code_cells(notebook):
        for node in ast.parse(source).body if "parameters" in tags else []:
            targets = [node.target] if isinstance(node, ast.AnnAssign) else []
            targets = node.targets if isinstance(node, ast.Assign) else targets
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def needed_by(name: str, notebooks: Mapping[str, Path]) -> list[str]:
    """The earlier notebooks whose files this one reads: it names them, in `run.require`."""
    code = "\n".join(code_of(notebooks[name]))
    return [other for other in notebooks if other < name and other in code]


def recorded_tables(notebook: Path) -> list[Path]:
    """The tables under results/ that a notebook shows: those whose name is in its code."""
    code = "\n".join(code_of(notebook))
    named = [name for name in _RECORDED if name in code]
    return [path for name in named for path in sorted((ROOT / "results").glob(f"{name}_*.json"))]


def imported_files(sources: Iterable[str]) -> set[Path]:
    """Files of this repository that pieces of Python import, and those that these import in turn.

    Imports inside functions count. Lines of a notebook that are no Python (%magic) are left out.
    """
    found: set[Path] = set()
    waiting = list(sources)
    while waiting:
        for name in _imported_names(waiting.pop()):
            path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            if path not in found and path.is_file():
                found.add(path)
                waiting.append(path.read_text(encoding="utf-8"))
    return found


@functools.cache
def notebook_digest(notebook: Path) -> str:
    """Digest of a notebook's code and of all library code that it imports."""
    code = code_of(notebook)
    return _digest([*code, digest_of(*sorted(imported_files(code)))])


@functools.cache
def module_digest(*names: str) -> str:
    """Digest of modules such as "data_prep.phantoms" and of all that they import."""
    return digest_of(*sorted(imported_files(f"import {name}" for name in names)))


@functools.cache
def digest_of(*paths: Path) -> str:
    """Digest of the names and contents of files, and of all files below folders."""
    parts = []
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".part":
                state = file.stat()
                content = f"{state.st_size} {state.st_mtime_ns}"
                if state.st_size <= _LARGE:
                    content = hashlib.sha256(file.read_bytes()).hexdigest()
                parts.append(f"{file.relative_to(path.parent).as_posix()} {content}")
    return _digest(parts)


def identity(settings: Mapping[str, object]) -> str:
    """Digest of plain settings: two runs of a step are the same if theirs is."""
    return _digest([json.dumps(settings, sort_keys=True)])


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _code_cells(notebook: Path) -> list[tuple[str, list[str]]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [
        ("".join(cell["source"]), cell["metadata"].get("tags", []))
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def _imported_names(source: str) -> set[str]:
    """Dotted names of this repository's modules that a piece of Python imports."""
    lines = ["" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()]
    names = set()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    names = {name for name in names if name.split(".")[0] in _PACKAGES}
    public = {f"medsign_lite.{name}": module for name, module in medsign_lite._MODULES.items()}
    return {f"medsign_lite.{public[name]}" if name in public else name for name in names}
