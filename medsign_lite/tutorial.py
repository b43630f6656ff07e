"""Run the notebooks in order by papermill and make the index page that shows what came out.

    python -m medsign_lite.tutorial --profile class --run-folder runs/lesson
    python -m medsign_lite.tutorial --profile smoke --notebooks 02 03 -p seed 7 --force

A notebook whose code, parameters and inputs have not changed since it last succeeded in this run
folder is not run again; of your own data the manifest counts, not every image. The executed copy of
a notebook that fails is kept, with its error.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import nbformat

from medsign_lite.files import whole_file
from medsign_lite.index_page import write_index
from medsign_lite.notebook_execution import (
    check_parameters,
    committed_form,
    error_report,
    execute,
    find_notebooks,
)
from medsign_lite.profiles import PATHS, PROFILES
from medsign_lite.results import ROOT, hardware, versions, write_json
from medsign_lite.runs import default_folder

_OWN_FILES = ("notebooks/", "run.json", "index.html")
_LARGE = 64 * 2**20  # bytes; larger files are told apart by size and time, not by content


def run_tutorial(
    notebooks: Sequence[Path],
    folder: Path,
    parameters: Mapping[str, object],
    *,
    force: bool = False,
    cell_timeout: int = 3600,
    in_place: bool = False,
) -> bool:
    """Run notebooks in order until one fails, keep run.json up to date, write index.html.

    Args:
        notebooks: the notebooks, in order.
        folder: the run folder.
        parameters: handed to every notebook, after a check that each of them accepts them all.
        force: run also those that are current.
        cell_timeout: seconds that one cell may take.
        in_place: inject nothing (the notebooks' defaults must name this folder) and write the
            executed notebooks back, in the form in which they are committed.

    Returns:
        True if all notebooks succeeded or were current.
    """
    for notebook in notebooks:
        check_parameters(notebook, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    log = read_log(folder)
    log |= {"parameters": dict(parameters), "hardware": hardware(), "versions": versions()}
    # The later notebooks show what is recorded.
    inputs = [ROOT / "medsign_lite", ROOT / "data_prep", ROOT / "results", *_given(parameters)]
    code = fingerprint(inputs)
    failed = False
    for notebook in notebooks:
        record = log["notebooks"].setdefault(notebook.stem, {})
        key = _key(notebook, [code, dict(parameters), _finished_before(log, notebook.stem)])
        if not force and not in_place and is_current(record, key, folder):
            print(f"{notebook.stem}: current, not run again", flush=True)
            continue
        print(f"{notebook.stem}: running ...", flush=True)
        record |= {"status": "interrupted", "title": title(notebook)}
        write_json(folder / "run.json", log)
        before, start = files_in(folder), time.perf_counter()
        target = folder / "notebooks" / notebook.name
        error = execute(notebook, target, {} if in_place else parameters, cell_timeout)
        seconds = time.perf_counter() - start
        after = files_in(folder)
        made = {name: state for name, state in after.items() if before.get(name) != state}
        for other in log["notebooks"].values():  # a file belongs to the notebook that wrote it last
            kept = {name: s for name, s in other.get("files", {}).items() if name not in made}
            other["files"] = kept
        record |= {
            "status": "failed" if error else "passed",
            "seconds": round(seconds, 1),
            "finished": datetime.now(UTC).isoformat(),
            "key": key,
            "files": {name: after[name] for name in {**record["files"], **made} if name in after},
            "error": error.splitlines()[-1] if error else "",
        }
        write_json(folder / "run.json", log)
        if error:
            print(error, file=sys.stderr)
            print(f"{notebook.stem}: failed after {seconds:.0f} s", file=sys.stderr)
            print(f"  executed as far as it went: {target}", file=sys.stderr)
            print(f"  error and stderr: {error_report(target)}", file=sys.stderr)
            failed = True
            break
        print(f"{notebook.stem}: passed in {seconds:.0f} s", flush=True)
        if in_place:
            text = nbformat.writes(committed_form(nbformat.read(target, as_version=4)))
            with whole_file(notebook) as file:
                file.write((text.rstrip("\n") + "\n").encode())
    print(f"index page: {write_index(folder)}", flush=True)
    return not failed


def is_current(record: Mapping, key: str, folder: Path) -> bool:
    """Whether a notebook passed with this key and its files are as it left them."""
    if record.get("status") != "passed" or record.get("key") != key:
        return False
    return record["files"].items() <= files_in(folder).items()


def fingerprint(paths: Sequence[Path]) -> str:
    """Hash of the names and contents of files, and of all files below folders."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file() or "__pycache__" in file.parts or file.suffix == ".part":
                continue
            state = file.stat()
            content = f"{state.st_size} {state.st_mtime_ns}".encode()
            if state.st_size <= _LARGE:
                content = hashlib.sha256(file.read_bytes()).digest()
            digest.update(f"{file.relative_to(path.parent)}\0".encode() + content)
    return digest.hexdigest()


def files_in(folder: Path) -> dict[str, list[int]]:
    """Size and time of change of every file of a run folder but those that the runner writes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(_OWN_FILES) and path.suffix != ".part":
            found[name] = [path.stat().st_size, path.stat().st_mtime_ns]
    return found


def title(notebook: Path) -> str:
    """The first heading of a notebook, or its name."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        for line in cell.source.splitlines() if cell.cell_type == "markdown" else []:
            if line.startswith("# "):
                return line.removeprefix("# ").strip()
    return notebook.stem


def read_log(folder: Path) -> dict:
    """The run's log, run.json; an empty one if there is none or it is damaged."""
    try:
        log = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # everything is then run again
        log = {}
    return log | {"notebooks": log.get("notebooks", {})}


def _key(notebook: Path, rest: list) -> str:
    """Hash of all that a notebook's results depend on; its prose and outputs do not count."""
    cells = nbformat.read(notebook, as_version=4).cells
    source = [cell.source for cell in cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps([source, *rest], default=str).encode()).hexdigest()


def _finished_before(log: Mapping, stem: str) -> list[str]:
    """When each earlier notebook last ran: if one ran again, this one's inputs may differ."""
    records = sorted(log["notebooks"].items())
    return [record.get("finished", "") for name, record in records if name < stem]


def _given(parameters: Mapping[str, object]) -> list[Path]:
    return [Path(str(parameters[name])) for name in PATHS if parameters.get(name)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m medsign_lite.tutorial",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", default="class", choices=list(PROFILES))
    parser.add_argument("--run-folder", type=Path, help="default: runs/<profile>")
    parser.add_argument("--notebooks", nargs="+", default=[], metavar="NN", help="default: all")
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        dest="parameters",
        metavar=("NAME", "VALUE"),
        help="a parameter that each of the chosen notebooks has",
    )
    parser.add_argument("--force", action="store_true", help="run those that are current, too")
    parser.add_argument("--cell-timeout", type=int, default=3600, metavar="SECONDS")
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="run with the notebooks' own defaults and write the executed notebooks back",
    )
    parser.add_argument("--notebook-folder", type=Path, default=ROOT / "notebooks")
    options = parser.parse_args(arguments)
    folder = (options.run_folder or default_folder(options.profile)).expanduser().resolve()
    if options.in_place and (options.parameters or folder != default_folder("class")):
        parser.error("--in-place runs the notebooks' defaults: it takes no parameter or run folder")
    parameters = {"profile": options.profile, "run_folder": str(folder), **dict(options.parameters)}
    for name in PATHS:  # seen from here; a notebook runs in its own folder
        path = Path(parameters.get(name) or "").expanduser()
        if parameters.get(name) and (name != "judge" or path.exists()):
            parameters[name] = str(path.resolve())
    try:
        notebooks = find_notebooks(options.notebook_folder, options.notebooks)
        passed = run_tutorial(
            notebooks,
            folder,
            parameters,
            force=options.force,
            cell_timeout=options.cell_timeout,
            in_place=options.in_place,
        )
    except ValueError as error:
        parser.error(str(error))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
