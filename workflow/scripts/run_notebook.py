"""Run one notebook in its run folder.

The executed copy is kept in the run folder's notebooks/, with a record beside it, or, if it failed,
with the error.
"""

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from medsign_lite.notebook_execution import check_parameters, error_report, execute
from medsign_lite.results import hardware, versions, write_json
from medsign_lite.tutorial import title


def record_of(executed: Path) -> Path:
    """Where the record of a notebook that succeeded is kept, beside its executed copy."""
    return executed.with_suffix(".json")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--notebook", type=Path, required=True)
    parser.add_argument("--run-folder", type=Path, required=True)
    parser.add_argument("--parameters", type=json.loads, required=True, help="a JSON object")
    parser.add_argument("--cell-timeout", type=int, required=True, metavar="SECONDS")
    options = parser.parse_args(arguments)
    parameters = {**options.parameters, "run_folder": str(options.run_folder)}
    try:
        check_parameters(options.notebook, parameters)
    except ValueError as error:
        parser.error(str(error))
    target = options.run_folder / "notebooks" / options.notebook.name
    record = record_of(target)
    record.unlink(missing_ok=True)
    start = time.perf_counter()
    if error := execute(options.notebook, target, parameters, options.cell_timeout):
        print(error, file=sys.stderr)
        print(f"executed as far as it went: {target}", file=sys.stderr)
        print(f"error and stderr: {error_report(target)}", file=sys.stderr)
        return 1
    entry = {
        "status": "passed",
        "title": title(options.notebook),
        "seconds": round(time.perf_counter() - start, 1),
        "finished": datetime.now(UTC).isoformat(),
    }
    about = {"parameters": options.parameters, "hardware": hardware(), "versions": versions()}
    write_json(record, {"notebook": entry, **about})
    return 0


if __name__ == "__main__":
    sys.exit(main())
