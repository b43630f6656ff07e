"""The page that shows a run: status, figures, the paper's figures in our version, and tables.

One self-contained HTML file: figures are embedded, nothing is fetched. Whatever is missing or
damaged in the run folder is left out or named, never an error.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from medsign_lite.files import whole_file
from medsign_lite.published import TABLE1_COLUMNS, table1

_PAPER_FIGURES = {
    "paper_fig2": "Fig. 2: attention of each token, their combination, and the pathology map",
    "paper_fig3": "Fig. 3: what the watermark changes, and where",
}
_HEADINGS = {
    "method": "Method", "psnr": "PSNR (dB)", "ssim": "SSIM", "none": "None", "crop": "Crop",
    "brightness": "Brightness", "jpeg": "JPEG", "rotation": "Rotation", "resize": "Resize",
    "mean": "Mean", "images": "Images",
}  # fmt: skip
_MODALITIES = {"chest": "Chest radiographs", "fundus": "Fundus photographs"}
_STATES = {"passed": "passed", "failed": "failed", "interrupted": "interrupted"}


def write_index(folder: str | Path) -> Path:
    """Write index.html into a run folder from its run.json, figures/ and results/."""
    folder = Path(folder)
    log = _read(folder / "run.json")
    log["notebooks"] = {n: r for n, r in _part(log, "notebooks").items() if isinstance(r, dict)}
    figures = _figures(folder / "figures")
    results = {path.stem: _read(path) for path in sorted((folder / "results").glob("*.json"))}
    body = [
        _summary(log),
        _status_table(log),
        _paper_figures(figures),
        _table1_section(results.pop("table1", {})),
        *_notebook_sections(folder, log, figures, results),
    ]
    template = resources.files("medsign_lite").joinpath("index_page.html").read_text("utf-8")
    page = template.replace("<!-- body -->", "\n".join(part for part in body if part))
    path = folder / "index.html"
    with whole_file(path) as file:
        file.write(page.encode(errors="xmlcharrefreplace"))  # half a character in a damaged file
    return path


def _read(path: Path) -> dict:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # missing or damaged: the rest makes the page
        return {}
    return document if isinstance(document, dict) else {}


def _part(document: Mapping, name: str) -> dict:
    """What a document holds under a name, if that is an object as it should be."""
    part = document.get(name)
    return part if isinstance(part, dict) else {}


def _figures(folder: Path) -> dict[str, dict]:
    return {path.stem: {**_read(path.with_suffix(".json")), "path": path}
            for path in sorted(folder.glob("*.png")) if path.is_file()}  # fmt: skip


def _summary(log: Mapping) -> str:
    records = log["notebooks"].values()
    passed = sum(record.get("status") == "passed" for record in records)
    times = [record.get("seconds") for record in records]
    seconds = sum(time for time in times if isinstance(time, int | float))
    parameters, versions = _part(log, "parameters"), _part(log, "versions")
    facts = {
        "Notebooks": f"{passed} of {len(records)} passed, {_duration(seconds)} in all",
        "Profile": parameters.get("profile", "unknown"),
        "Parameters": ", ".join(f"{name} = {value}" for name, value in parameters.items()
                                if name not in ("profile", "run_folder")) or "defaults",
        "Hardware": log.get("hardware", "unknown"),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }  # fmt: skip
    rows = [f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in facts.items() if value]
    return f"<dl>{''.join(rows)}</dl>"


def _status_table(log: Mapping) -> str:
    rows = []
    for name, record in sorted(log["notebooks"].items()):
        state = str(record.get("status", "unknown"))
        mark = f'<span class="state {_STATES.get(state, "interrupted")}">{_text(state)}</span>'
        link = f'<a href="#{_text(name)}">{_text(name[:2])}</a>'
        rows.append(
            f"<tr><td>{link}</td><td>{_text(record.get('title', name))}</td><td>{mark}</td>"
            f'<td class="number">{_duration(record.get("seconds"))}</td></tr>'
        )
    if not rows:
        return "<p>No notebook has been run in this folder yet.</p>"
    head = '<tr><th>No.</th><th>Notebook</th><th>Status</th><th class="number">Time</th></tr>'
    return _scroll(f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>")


def _paper_figures(figures: dict[str, dict]) -> str:
    parts = ['<h2 id="paper-figures">The paper’s figures, in our version</h2>']
    for name, heading in _PAPER_FIGURES.items():
        figure = figures.pop(name, None)
        shown = _figure(figure) if figure else "<p class='absent'>Not made in this run yet.</p>"
        parts.append(f"<h3>{heading}</h3>{shown}")
    return "\n".join(parts)


def _figure(figure: Mapping) -> str:
    data = base64.b64encode(figure["path"].read_bytes()).decode()
    alt = _text(figure.get("alt", figure["path"].stem))
    caption = _text(figure.get("caption", ""))
    return (
        f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table1_section(document: Mapping) -> str:
    found = _part(document, "values").get("rows")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    parts = [
        '<h2 id="table1">Table 1: the paper’s figures beside ours</h2>',
        "<p>Quality against the original decoder’s image, and the share of the 48 bits that are "
        "read after each attack (chance: 0.50). The paper measured on MIMIC-CXR-JPG and OIA-ODIR "
        "at 512 px; our rows come from this run’s model and data. The protocol is the same; "
        "model, images, extractor and losses are not: compare the pattern, it is no ranking.</p>",
    ]
    if not rows:
        parts.append("<p class='absent'>Our rows are not made yet: notebook 06 makes them.</p>")
    for modality, heading in _MODALITIES.items():
        ours = [row for row in rows if row.get("modality") == modality]
        columns = ["method", *TABLE1_COLUMNS]
        lines = [_row(row, columns, places=2) for row in table1(modality)]
        lines += [_row(row, columns, "ours", places=2) for row in ours]
        parts.append(f"<h3>{heading}</h3>{_table(columns, lines)}")
    return "\n".join(parts)


def _notebook_sections(folder: Path, log: Mapping, figures: dict, results: dict) -> list[str]:
    records = dict(sorted(log["notebooks"].items()))
    owners = {name: str(figure.get("notebook", "")) for name, figure in figures.items()}
    makers = {
        name: str(_part(document, "config").get("notebook", name))
        for name, document in results.items()
    }
    for name in [*owners.values(), *makers.values()]:  # made outside this runner, by hand
        records.setdefault(name, {})
    sections = []
    for name, record in sorted(records.items()):
        parts = [f'<h2 id="{_text(name)}">{_text(record.get("title", name) or "Other")}</h2>']
        copy = folder / "notebooks" / f"{name}.ipynb"
        state = f"{_text(record.get('status', 'run by hand'))}, {_duration(record.get('seconds'))}"
        if copy.is_file():
            state += f', <a href="notebooks/{_text(name)}.ipynb">executed notebook</a>'
        parts.append(f'<p class="meta">{state}</p>')
        if record.get("error"):
            parts.append(f'<pre class="error">{_text(record["error"])}</pre>')
        parts += [_figure(figures[key]) for key in owners if owners[key] == name]
        parts += [_result(results[key]) for key in makers if makers[key] == name]
        sections.append("\n".join(parts))
    return sections


def _result(document: Mapping) -> str:
    """Single figures as one table, every list of dicts as another."""
    tables, single = [], []
    for name, value in _part(document, "values").items():
        label = _text(name.replace("_", " "))
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            columns = list(value[0])
            rows = [_row(row, columns) for row in value]
            tables.append(f"<h3>{label}</h3>{_table(columns, rows)}")
        elif not isinstance(value, list):
            single.append(f'<tr><th>{label}</th><td class="number">{_cell(value)}</td></tr>')
    if single:
        tables.insert(0, _scroll(f"<table><tbody>{''.join(single)}</tbody></table>"))
    return "\n".join(tables)


def _table(columns: Sequence[str], rows: Sequence[str]) -> str:
    names = [_HEADINGS.get(name, name.replace("_", " ")) for name in columns]
    cells = [f"<th{_number(i)}>{_text(name)}</th>" for i, name in enumerate(names)]
    head = f"<thead><tr>{''.join(cells)}</tr></thead>"
    return _scroll(f"<table>{head}<tbody>{''.join(rows)}</tbody></table>")


def _row(row: Mapping, columns: Sequence[str], kind: str = "", places: int = 3) -> str:
    shown = [_cell(row.get(name), places) for name in columns]
    cells = [f"<td{_number(i)}>{cell}</td>" for i, cell in enumerate(shown)]
    return f'<tr class="{kind}">{"".join(cells)}</tr>' if kind else f"<tr>{''.join(cells)}</tr>"


def _number(column: int) -> str:
    return ' class="number"' if column else ""


def _cell(value: object, places: int = 3) -> str:
    """A value with its interval where it has one; a dash where there is none."""
    if isinstance(value, dict) and "value" in value:
        low, high = value.get("low"), value.get("high")
        shown = _cell(value["value"], places)
        if isinstance(low, int | float) and isinstance(high, int | float):
            dash = "–" if low >= 0 else " to "
            shown += f"<small>{_cell(low, places)}{dash}{_cell(high, places)}</small>"
        return shown
    if isinstance(value, dict):
        return ", ".join(f"{_text(name)} {_cell(item, places)}" for name, item in value.items())
    if isinstance(value, float):
        if value and abs(value) < 0.001:
            return f"{value:.1e}"
        return f"{value:.{2 if abs(value) >= 10 else places}f}"
    return "–" if value is None else _text(value)


def _duration(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return "–"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _scroll(table: str) -> str:
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _text(value: object) -> str:
    return html.escape(str(value))
