"""The index page of a run folder, from the records of what succeeded and the errors of the rest."""

import argparse
import json
from pathlib import Path

from medsign_lite.index_page import write_index
from medsign_lite.notebook_execution import error_report
from medsign_lite.results import write_json
from medsign_lite.tutorial import title
from workflow.scripts.run_notebook import record_of


def log_of(run_folder: Path) -> dict:
    """What the index page reads in run.json: each notebook that was run, and how it ended."""
    log: dict = {"notebooks": {}}
    for executed in sorted((run_folder / "notebooks").glob("*.ipynb")):
        record, report = record_of(executed), error_report(executed)
        if report.is_file():
            error = report.read_text(encoding="utf-8").split("\n\n--- stderr")[0]
            entry = {"status": "failed", "title": title(executed), "error": error.splitlines()[-1]}
        elif record.is_file():
            document = json.loads(record.read_text(encoding="utf-8"))
            entry = document.pop("notebook")
            log |= document
        else:
            entry = {"status": "interrupted", "title": title(executed)}
        log["notebooks"][executed.stem] = entry
    return log


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_folder", type=Path)
    folder = parser.parse_args(arguments).run_folder
    write_json(folder / "run.json", log_of(folder))
    print(f"index page: {write_index(folder)}")


if __name__ == "__main__":
    main()
