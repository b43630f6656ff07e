"""The workflow's parts, and Snakemake itself on small stand-in notebooks."""

import copy
import csv
import importlib.util
import json
import os
import subprocess
import sys

import jsonschema
import pytest
import torch
import yaml
from notebook_samples import write_notebook
from test_finetuning import tiny_extractor

from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.extractor import save_extractor
from medsign_lite.latent_cache import write_latent_cache
from medsign_lite.losses import chest_weights
from medsign_lite.profiles import PROFILES
from medsign_lite.results import read_result
from medsign_lite.training.precision import PRECISIONS
from tests.tiny_pipeline import tiny_pipeline
from workflow import steps
from workflow.configuration import (
    check_configuration,
    chosen_notebooks,
    given_files,
    notebook_parameters,
)
from workflow.scripts import finetune_point, run_notebook, sweep_table, write_page
from workflow.sweep import Point, grid_points

CONFIG = {
    "tutorials": [{"name": "one", "profile": "smoke"}],
    "sweep": {
        "cache": {"entries": 8},
        "finetuning": {"steps": 2, "held_out": 2},
        "grid": {
            "modality": ["chest"],
            "message": [1],
            "total_variation": [0, 1],
            "preservation": [0.5],
        },
    },
}


# --- configuration ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema(root):
    return yaml.safe_load((root / "workflow" / "config.schema.yaml").read_text(encoding="utf-8"))


def changed(place, value):
    """CONFIG with one more or another value, at a place such as "sweep/cache/entries"."""
    config = copy.deepcopy(CONFIG)
    *parents, key = place.split("/")
    section = config
    for parent in parents:
        section = section[int(parent) if parent.isdigit() else parent]
    section[key] = value
    return config


def with_defaults(schema, values):
    """What Snakemake makes of a valid configuration."""
    if schema.get("type") == "array":
        return [with_defaults(schema["items"], value) for value in values]
    if schema.get("type") != "object" or "properties" not in schema:
        return values
    known = schema["properties"].items()
    filled = {name: part["default"] for name, part in known if "default" in part} | values
    return {name: with_defaults(part, filled[name]) for name, part in known if name in filled}


def test_schema_accepts_the_configuration_that_is_shipped(schema, root):
    config = yaml.safe_load((root / "workflow" / "config.yaml").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(config, schema)
    check_configuration(with_defaults(schema, config))
    assert len(grid_points(config["sweep"]["grid"])) >= 12


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("sewep", {}, "'sewep' was unexpected"),
        ("sweep/cache/shrads", 2, "'shrads' was unexpected"),
        ("threads", "two", "'two' is not of type 'integer'"),
        ("sweep/finetuning/steps", 2.5, "2.5 is not of type 'integer'"),
        ("tutorials/0/profile", "quick", "'quick' is not one of"),
        ("tutorials/0/name", "../up", "'../up' does not match"),
        ("sweep/grid/preservation", [1, -0.5], "-0.5 is less than the minimum of 0"),
        ("sweep/grid/message", [], "should be non-empty"),
        ("sweep/grid/modality", ["brain"], "'brain' is not one of"),
    ],
)
def test_schema_refuses(schema, place, value, message):
    jsonschema.validate(CONFIG, schema)
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(changed(place, value), schema)


def test_schema_knows_what_the_library_knows(schema):
    tutorial = schema["properties"]["tutorials"]["items"]["properties"]
    sweep = schema["properties"]["sweep"]["properties"]
    assert tutorial["profile"]["enum"] == list(PROFILES)
    assert sweep["finetuning"]["properties"]["precision"]["enum"] == list(PRECISIONS)
    modalities = sweep["grid"]["properties"]["modality"]["items"]["enum"]
    assert modalities == sorted(finetune_point.PRESETS)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("tutorials", [CONFIG["tutorials"][0]] * 2, "a name of its own, got one, one"),
        ("tutorials/0/notebooks", ["99"], "tutorial one: no notebook '99', there are 01_text"),
        ("tutorials/0/profile", "paper", "profile paper needs your own checkpoint and data"),
        ("tutorials/0/data", "nowhere.csv", "tutorial one: data does not exist: nowhere.csv"),
        ("tutorials/0/parameters", {"09_x": {}}, "parameters of '09_x', there are 01_text"),
        (
            "tutorials/0/parameters",
            {"04_extractor_pretraining": {"bist": 8}},
            "unknown parameter bist: 04_extractor_pretraining accepts bits, extractor_batch",
        ),
        (
            "tutorials/0/parameters",
            {"09_attacks_beyond_the_paper": {"autoencoder": "nowhere"}},
            "tutorial one, 09_attacks_beyond_the_paper: autoencoder does not exist: nowhere",
        ),
        ("sweep/pipeline", "nowhere", "sweep: pipeline does not exist: nowhere"),
        ("sweep/finetuning/start", "docs", "start does not exist: docs/decoder_chest"),
        ("sweep/cache/workers", 2, "2 workers for 1 batches"),
        ("sweep/finetuning/held_out", 8, "holds out 8 entries, expected fewer than the 8"),
        ("sweep/grid/preservation", [1, 1.0], "names each point once, got chest_message-1_"),
        ("notebook_folder", "docs", "no numbered notebook"),
    ],
)
def test_check_configuration_refuses(schema, place, value, message):
    check_configuration(with_defaults(schema, CONFIG))
    with pytest.raises(ValueError, match=message):
        check_configuration(with_defaults(schema, changed(place, value)))


def test_chosen_notebooks_are_all_or_those_that_begin_so(tmp_path):
    notebooks = {name: tmp_path for name in ("01_a", "02_b", "03_c")}
    assert chosen_notebooks({"name": "x", "notebooks": []}, notebooks) == ["01_a", "02_b", "03_c"]
    assert chosen_notebooks({"name": "x", "notebooks": ["03", "01"]}, notebooks) == ["01_a", "03_c"]


TUTORIAL = {"name": "one", "profile": "smoke", "seed": 3, "pipeline": "", "data": "docs"}


def test_notebook_parameters_resolve_every_path(root):
    own = {"autoencoder": "medsign_lite/weights/pipeline", "judge": "medsign_lite", "example": 0}
    tutorial = TUTORIAL | {"parameters": {"06_x": own}}
    assert notebook_parameters(tutorial, "06_x") == {
        "profile": "smoke", "seed": 3, "data": str(root / "docs"), "example": 0,
        "autoencoder": str(root / "medsign_lite" / "weights" / "pipeline"),
        "judge": str(root / "medsign_lite"),
    }  # fmt: skip
    found = given_files(notebook_parameters(tutorial, "06_x"))
    assert found == [root / "docs", root / "medsign_lite/weights/pipeline", root / "medsign_lite"]
    others = {"profile": "smoke", "seed": 3, "data": str(root / "docs")}
    assert notebook_parameters(tutorial, "07_x") == others


def test_notebook_parameters_leave_the_name_of_a_judge_alone(root):
    tutorial = TUTORIAL | {"parameters": {"06_x": {"judge": "densenet121-res224-all"}}}
    parameters = notebook_parameters(tutorial, "06_x")
    assert parameters["judge"] == "densenet121-res224-all"
    assert given_files(parameters) == [root / "docs"]


# --- what a step depends on ------------------------------------------------------------------


def test_needed_by_is_what_the_notebooks_require(root):
    notebooks = steps.notebooks_in(root / "notebooks")
    needs = {name[:2]: [n[:2] for n in steps.needed_by(name, notebooks)] for name in notebooks}
    assert needs["01"] == [] and needs["02"] == ["01"] and needs["04"] == ["01"]
    assert needs["03"] == ["01", "02"] and needs["05"] == ["03", "04"]
    assert needs["06"] == ["01", "04", "05"]


def test_recorded_tables_are_those_that_a_notebook_shows(root, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    names = ("table1_chest", "table2_chest", "table2_fundus", "attacker_chest", "weights")
    for name in names:
        (tmp_path / "results" / f"{name}.json").write_text("{}")
    notebooks = steps.notebooks_in(root / "notebooks")
    shown = {name[:2]: [path.stem for path in steps.recorded_tables(notebook)]
             for name, notebook in notebooks.items()}  # fmt: skip
    assert shown["07"] == shown["08"] == ["table2_chest", "table2_fundus"]
    assert shown["09"] == ["attacker_chest"] and shown["06"] == ["table1_chest"]
    assert not any(shown[number] for number in ("01", "02", "03", "04", "05"))


def test_parameters_of_reads_the_tagged_cell_only(tmp_path):
    notebook = write_notebook(tmp_path / "01_a.ipynb", "later: int = 1\nanother = 2")
    assert steps.parameters_of(notebook) == {"profile", "run_folder", "word"}


def test_imported_files_follow_imports_of_imports():
    source = "%matplotlib inline\ndef f():\n    from medsign_lite import psnr, files\nimport json"
    found = {path.stem for path in steps.imported_files([source])}
    assert {"metrics", "files"} <= found  # psnr is found where the package finds it
    assert "finetuning" not in found and "json" not in found
    found = {path.stem for path in steps.imported_files(["import workflow.scripts.finetune_point"])}
    assert {"finetune_point", "sweep", "finetuning", "losses", "budgets"} <= found
    assert "plotting" not in found


def test_what_snakemake_reads_for_every_job_loads_nothing_heavy(root):
    program = (
        "import sys, workflow.configuration; "
        "print(*sorted({'torch', 'diffusers', 'numpy', 'papermill'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A repository of three modules, of which a notebook uses two."""
    for name, source in {
        "a": "from medsign_lite import b\n", "b": "X = 1\n", "unused": "Y = 1\n",
    }.items():  # fmt: skip
        (tmp_path / "medsign_lite").mkdir(exist_ok=True)
        (tmp_path / "medsign_lite" / f"{name}.py").write_text(source)
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    write_notebook(tmp_path / "01_a.ipynb", "from medsign_lite.a import f")

    def digest():
        steps.notebook_digest.cache_clear()
        steps.digest_of.cache_clear()
        return steps.notebook_digest(tmp_path / "01_a.ipynb")

    yield tmp_path, digest
    steps.notebook_digest.cache_clear()
    steps.digest_of.cache_clear()


def test_notebook_digest_changes_with_code_and_what_it_imports(library):
    folder, digest = library
    first = digest()
    (folder / "medsign_lite" / "unused.py").write_text("Y = 2\n")
    write_notebook(folder / "01_a.ipynb", "from medsign_lite.a import f")
    text = (folder / "01_a.ipynb").read_text().replace("Text.", "Other text.")
    (folder / "01_a.ipynb").write_text(text)
    assert digest() == first
    (folder / "medsign_lite" / "b.py").write_text("X = 2\n")
    second = digest()
    write_notebook(folder / "01_a.ipynb", "from medsign_lite.a import g")
    assert len({first, second, digest()}) == 3


def test_digest_of_sees_names_and_contents_but_not_caches(tmp_path):
    def digest():
        steps.digest_of.cache_clear()
        return steps.digest_of(tmp_path)

    (tmp_path / "a.py").write_text("1")
    first = digest()
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    (tmp_path / ".a.py.7.part").write_text("half")
    os.utime(tmp_path / "a.py", (0, 0))
    assert digest() == first
    (tmp_path / "a.py").write_text("2")
    second = digest()
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, digest()}) == 3


# --- the sweep -------------------------------------------------------------------------------


def test_grid_points_are_every_combination():
    grid = {"modality": ["chest", "fundus"], "message": [1], "total_variation": [0, 0.5],
            "preservation": [0, 1, 4]}  # fmt: skip
    points = grid_points(grid)
    assert len(points) == len({point.name for point in points}) == 12
    assert points[-1].name == "fundus_message-1_total-variation-0.5_preservation-4"


def test_point_refuses_a_weight_below_zero():
    with pytest.raises(ValueError, match="the factor of message must be 0 or more, got -1"):
        Point(modality="chest", message=-1, total_variation=1, preservation=1)


def test_weights_at_multiplies_the_published_ones():
    weights = finetune_point.weights_at(
        Point(modality="chest", message=2, total_variation=0, preservation=0.5)
    )
    published = chest_weights()
    assert weights.image == published.image and weights.total_variation == 0
    assert weights.message == 2 * 7.5 and weights.preservation == 0.5 * 4 * 975


def document(modality="chest", preservation=1.0, **values):
    """A record as `finetune_point` writes it: six attacks of which one reads at chance."""
    scores = dict.fromkeys(PAPER_ATTACKS, 1.0) | {"jpeg": 0.4}
    scores |= {"psnr": 30.0, "ssim": 0.9, "finding_psnr": 33.0, "elsewhere_psnr": 29.5}
    scores |= {"with_finding": 1, "steps": 2, "last_quality": 0.3, "seconds": 1.5} | values
    point = {"modality": modality, "message": 1.0, "total_variation": 0.0}
    return {
        "values": scores,
        "config": {"point": point | {"preservation": preservation}, "entries": 8},
    }


def test_table_row_averages_the_attacks_and_compares_inside_with_outside():
    row = sweep_table.table_row(document())
    assert row["accuracy"] == pytest.approx(0.9) and row["spared"] == pytest.approx(3.5)
    assert row["modality"] == "chest" and row["preservation"] == 1.0 and row["entries"] == 8


def test_draw_has_a_panel_for_each_score_and_modality():
    rows = [
        sweep_table.table_row(document(modality, preservation, psnr=20.0 + preservation))
        for modality in ("fundus", "chest")
        for preservation in (4.0, 0.0, 1.0)
    ]
    figure = sweep_table.draw(rows)
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes[:2]] == ["chest", "fundus"]
    (line,) = figure.axes[2].lines  # the row of the PSNR
    assert list(line.get_xdata()) == [0, 1, 2] and list(line.get_ydata()) == [20.0, 21.0, 24.0]
    assert [t.get_text() for t in figure.axes[-1].get_xticklabels()] == ["x0", "x1", "x4"]
    assert figure.axes[-1].get_xlabel() == "weight of preservation"


def test_draw_tells_its_lines_apart_without_colour():
    rows = []
    for message in (1.0, 2.0):
        for preservation in (0.0, 1.0, 4.0):
            sample = document("chest", preservation)
            sample["config"]["point"]["message"] = message
            rows.append(sweep_table.table_row(sample))
    figure = sweep_table.draw(rows)
    for axes in figure.axes:
        drawn = [line for line in axes.lines if len(line.get_xdata()) == 3]
        assert len(drawn) == len({line.get_linestyle() for line in drawn}) == 2
        assert len({line.get_marker() for line in drawn}) == 2
        assert axes.get_ylabel()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["message x1", "message x2"]


def test_a_point_is_fine_tuned_scored_and_put_into_table_and_figure(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    save_extractor(tmp_path / "extractor", tiny_extractor())
    generator = torch.Generator().manual_seed(0)
    write_latent_cache(
        tmp_path / "cache", torch.randn(6, 4, 16, 16, generator=generator),
        torch.rand(6, 16, 16, generator=generator), ["no effusion"] * 6,
    )  # fmt: skip
    options = [
        "--modality", "chest", "--message", "1", "--total-variation", "0", "--preservation", "4",
        "--cache", "cache", "--pipeline", "pipeline", "--extractor", "extractor",
        "--steps", "2", "--batch-size", "2", "--learning-rate", "1e-3", "--held-out", "2",
        "--seed", "0", "--precision", "float32", "--out", "out", "--record", "point.json",
    ]  # fmt: skip
    paths = {"cache", "pipeline", "extractor", "out", "point.json"}
    finetune_point.main([str(tmp_path / o) if o in paths else o for o in options])
    record = read_result(tmp_path / "point.json")
    assert record["values"]["steps"] == 2 and record["config"]["entries"] == 6
    assert record["config"]["weights"]["preservation"] == 4 * 4 * 975
    first = json.loads((tmp_path / "out" / "decoder" / "config.json").read_text())
    on = [str(tmp_path / {"out": "on", "point.json": "on.json"}.get(o, o)) if o in paths else o
          for o in [*options, "--start"]]  # fmt: skip
    finetune_point.main([*on, str(tmp_path / "out" / "decoder")])
    later = json.loads((tmp_path / "on" / "decoder" / "config.json").read_text())
    assert later["message"] == first["message"]
    assert later["started_from"]["step"] == 2 and "started_from" not in first
    table, figure = tmp_path / "table.csv", tmp_path / "figure.png"
    sweep_table.main(["--points", str(tmp_path / "point.json"), "--table", str(table),
                      "--figure", str(figure)])  # fmt: skip
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert row["preservation"] == "4.0"
    assert float(row["psnr"]) == pytest.approx(record["values"]["psnr"], abs=1e-4)
    assert figure.read_bytes().startswith(b"\x89PNG")


# --- the notebooks ---------------------------------------------------------------------------


def test_run_notebook_refuses_a_parameter_before_it_runs(tmp_path, capsys):
    notebook = write_notebook(tmp_path / "01_a.ipynb")
    with pytest.raises(SystemExit):
        run_notebook.main([
            "--notebook", str(notebook), "--run-folder", str(tmp_path / "run"),
            "--parameters", '{"wrod": "x"}', "--cell-timeout", "60",
        ])  # fmt: skip
    assert "unknown parameter wrod" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_log_of_tells_passed_failed_and_interrupted_apart(tmp_path):
    folder = tmp_path / "run"
    for name in ("01_a", "02_b", "03_c"):
        write_notebook(folder / "notebooks" / f"{name}.ipynb")
    passed = {"status": "passed", "title": "A", "seconds": 3.0}
    about = {"notebook": passed, "parameters": {"profile": "smoke"}, "hardware": "h"}
    (folder / "notebooks" / "01_a.json").write_text(json.dumps(about))
    report = "ValueError: x\nmask is missing\n\n--- stderr of the notebook ---\nnoise"
    (folder / "notebooks" / "02_b.error.txt").write_text(report)
    log = write_page.log_of(folder)
    assert log["hardware"] == "h" and log["notebooks"]["01_a"] == passed
    failed = {"status": "failed", "title": "The lesson of 02_b", "error": "mask is missing"}
    assert log["notebooks"]["02_b"] == failed
    assert log["notebooks"]["03_c"]["status"] == "interrupted"


# --- Snakemake -------------------------------------------------------------------------------

needs_snakemake = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None,
    reason="Snakemake is not installed: pip install medsign-lite[workflow]",
)
PARAMETERS = (
    'profile: str = ""\nseed: int = 0\nrun_folder: str = ""\nword: str = "edema"\njudge: str = ""'
)


def snakemake(root, folder, config, *arguments):
    """Run Snakemake in a folder with a configuration that has one tutorial."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [
        sys.executable, "-m", "snakemake", *arguments, "--configfile", "config.yaml",
        "--snakefile", str(root / "workflow" / "Snakefile"),
    ]  # fmt: skip
    # Snakemake keeps what it reads in a cache of the user's; a test leaves nothing there.
    environment = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(folder / "cached")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@needs_snakemake
@pytest.mark.slow
def test_snakemake_skips_reruns_and_keeps_what_failed(root, tmp_path):
    ran = tmp_path / "ran.txt"
    note = f"from pathlib import Path\nopen({str(ran)!r}, 'a').write(NAME + '\\n')"

    def write(name, *sources):
        first = f"NAME = {name!r}\n{note}"
        write_notebook(tmp_path / "lessons" / f"{name}.ipynb", first, *sources,
                       parameters=PARAMETERS)  # fmt: skip

    write("01_first", "Path(run_folder, 'first.txt').write_text(profile)")
    read = "made_by = '01_first'\nassert Path(run_folder, 'first.txt').read_text() == 'smoke'"
    fails = "if word == 'bad':\n    raise ValueError('mask is missing')"
    write("02_second", read, fails)
    write("03_third", read)
    tutorial = {"name": "one", "profile": "smoke", "parameters": {"02_second": {"word": "bad"}}}
    config = {
        "folder": str(tmp_path / "out"),
        "notebook_folder": str(tmp_path / "lessons"),
        "tutorials": [tutorial],
    }
    arguments = ["tutorial", "--jobs", "2", "--keep-going"]
    status, output = snakemake(root, tmp_path, config, *arguments)
    folder, records = tmp_path / "out" / "tutorials" / "one", tmp_path / "out" / "records"
    # The failure stops nothing but itself, and everything about it is kept.
    assert status == 1, output
    assert sorted(ran.read_text().split()) == ["01_first", "02_second", "03_third"], output
    done = sorted(path.stem for path in (records / "tutorials" / "one").glob("*.done"))
    assert done == ["01_first", "03_third"]
    executed = folder / "notebooks" / "02_second.ipynb"
    assert "mask is missing" in executed.read_text()
    assert "mask is missing" in executed.with_suffix(".error.txt").read_text()
    log = records / "logs" / "tutorials" / "one" / "02_second.log"
    assert "mask is missing" in log.read_text()
    assert "mask is missing" in (folder / "index.html").read_text()

    # Another parameter, other code, other prose: what depends on the first two is run again.
    ran.write_text("")
    tutorial["parameters"] = {"02_second": {"word": "good"}}
    write("03_third", read, "more = 1")
    prose = (tmp_path / "lessons" / "01_first.ipynb").read_text()
    (tmp_path / "lessons" / "01_first.ipynb").write_text(prose.replace("Text.", "Other text."))
    status, output = snakemake(root, tmp_path, config, *arguments)
    assert status == 0, output
    assert sorted(ran.read_text().split()) == ["02_second", "03_third"], output
    assert "mask is missing" not in (folder / "index.html").read_text()
    status, output = snakemake(root, tmp_path, config, *arguments)
    assert status == 0 and "Nothing to be done" in output

    # So are the contents of a folder that one notebook alone is given.
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "config.json").write_text("1")
    tutorial["parameters"]["02_second"]["judge"] = str(tmp_path / "judge")
    for contents in ("1", "2"):
        (tmp_path / "judge" / "config.json").write_text(contents)
        ran.write_text("")
        status, output = snakemake(root, tmp_path, config, *arguments)
        assert status == 0 and ran.read_text().split() == ["02_second"], output


@needs_snakemake
@pytest.mark.slow
def test_snakemake_refuses_a_bad_configuration_before_any_job(root, tmp_path):
    config = changed("sweep/grid/preservation", [-1]) | {"folder": str(tmp_path / "out")}
    status, output = snakemake(root, tmp_path, config, "--jobs", "1")
    assert status == 1 and "-1 is less than the minimum of 0" in output, output
    assert not (tmp_path / "out").exists()


@needs_snakemake
@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "plugins", "mentions"),
    [
        ("local", [], "finetuning"),
        ("slurm", ["snakemake_executor_plugin_slurm"], "gres=gpu:1"),
        (
            "kubernetes",
            ["snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_fs"],
            "gpu_manufacturer=nvidia",
        ),
    ],
)
def test_snakemake_dry_runs_each_profile(root, tmp_path, profile, plugins, mentions):
    missing = [name for name in plugins if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing).replace('_', '-')}")
    arguments = ["--profile", str(root / "workflow" / "profiles" / profile), "--dry-run"]
    status, output = snakemake(root, tmp_path, CONFIG, *arguments)
    assert status == 0 and mentions in output and "This was a dry-run" in output, output
    jobs = {"notebook": 9, "phantoms": 1, "cache": 1, "finetuning": 2, "sweep_table": 1}
    counted = dict(line.split() for line in output.splitlines() if len(line.split()) == 2)
    assert {name: int(counted[name]) for name in jobs} == jobs
