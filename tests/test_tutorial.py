import json

import nbformat
import pytest
from notebook_samples import write_notebook

from medsign_lite import tutorial
from medsign_lite.tutorial import files_in, fingerprint, main, read_log, run_tutorial, title


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """Runs two notebooks whose execution only writes a file; returns which ones were executed."""
    ran, broken = [], set()
    notebooks = [write_notebook(tmp_path / "notebooks" / f"{n}.ipynb", n) for n in ("01_a", "02_b")]

    def execute(source, target, parameters, timeout):
        ran.append(source.stem)
        (target.parent.parent / f"{source.stem}.txt").write_text(f"{len(ran)}")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes())
        return "In [3]\nValueError: mask is missing" if source.stem in broken else ""

    monkeypatch.setattr(tutorial, "execute", execute)

    def run(**options):
        ran.clear()
        parameters = {"profile": "smoke", "run_folder": str(tmp_path / "run")}
        parameters |= options.pop("parameters", {})
        passed = run_tutorial(notebooks, tmp_path / "run", parameters, **options)
        return passed, list(ran)

    run.notebooks, run.folder, run.broken = notebooks, tmp_path / "run", broken
    return run


def test_current_notebooks_are_not_run_again(runner):
    assert runner() == (True, ["01_a", "02_b"])
    assert runner() == (True, [])
    assert runner(force=True) == (True, ["01_a", "02_b"])


def test_changed_code_reruns_a_notebook_and_those_after_it(runner):
    runner()
    write_notebook(runner.notebooks[1], "changed")
    assert runner()[1] == ["02_b"]
    write_notebook(runner.notebooks[0], "changed")
    assert runner()[1] == ["01_a", "02_b"]


def test_changed_prose_and_outputs_rerun_nothing(runner):
    runner()
    notebook = nbformat.read(runner.notebooks[0], as_version=4)
    notebook.cells[0].source += " More text."
    notebook.cells[1].execution_count = 7
    nbformat.write(notebook, runner.notebooks[0])
    assert runner()[1] == []


def test_changed_parameters_rerun(runner):
    runner()
    assert runner(parameters={"word": "effusion"})[1] == ["01_a", "02_b"]


def test_changed_library_reruns(runner, monkeypatch):
    runner()
    monkeypatch.setattr(tutorial, "fingerprint", lambda paths: "another")
    assert runner()[1] == ["01_a", "02_b"]


@pytest.mark.parametrize("change", ["delete", "edit"])
def test_a_file_that_is_gone_or_edited_is_made_again(runner, change):
    runner()
    made = runner.folder / "01_a.txt"
    made.unlink() if change == "delete" else made.write_text("by hand")
    assert runner()[1] == ["01_a", "02_b"]


def test_a_failure_stops_the_run_is_told_and_is_tried_again(runner, capsys):
    runner.broken.add("01_a")
    assert runner() == (False, ["01_a"])
    told = capsys.readouterr().err
    assert "mask is missing" in told and str(runner.folder / "notebooks" / "01_a.ipynb") in told
    record = read_log(runner.folder)["notebooks"]["01_a"]
    assert (record["status"], record["error"]) == ("failed", "ValueError: mask is missing")
    assert "mask is missing" in (runner.folder / "index.html").read_text()
    runner.broken.clear()
    assert runner() == (True, ["01_a", "02_b"])


def test_an_interrupted_notebook_is_run_again(runner, monkeypatch):
    runner()
    working = tutorial.execute

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tutorial, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner(force=True)
    assert read_log(runner.folder)["notebooks"]["01_a"]["status"] == "interrupted"
    monkeypatch.setattr(tutorial, "execute", working)
    assert runner()[1] == ["01_a", "02_b"]


def test_an_unknown_parameter_is_refused_before_anything_runs(runner):
    with pytest.raises(ValueError, match="unknown parameter wrod"):
        runner(parameters={"wrod": "x"})
    assert not runner.folder.exists()


def test_in_place_injects_nothing_and_writes_the_committed_form(runner, monkeypatch):
    handed = []

    def execute(source, target, parameters, timeout):
        handed.append(parameters)
        notebook = nbformat.read(source, as_version=4)
        notebook.metadata["papermill"] = {"output_path": str(target)}
        notebook.cells[2].execution_count = 3
        target.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, target)
        return ""

    monkeypatch.setattr(tutorial, "execute", execute)
    runner(in_place=True)
    assert handed == [{}, {}]
    written = nbformat.read(runner.notebooks[0], as_version=4)
    assert written.cells[2].execution_count == 3 and "papermill" not in written.metadata


def test_a_damaged_log_means_run_again(runner):
    runner()
    (runner.folder / "run.json").write_text('{"notebooks": ')
    assert runner()[1] == ["01_a", "02_b"]


def test_fingerprint_sees_names_and_contents_but_not_caches(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = fingerprint([tmp_path])
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    assert fingerprint([tmp_path]) == first
    (tmp_path / "a.py").write_text("2")
    second = fingerprint([tmp_path])
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, fingerprint([tmp_path])}) == 3


def test_files_in_leaves_out_what_the_runner_writes(tmp_path):
    for name in ("run.json", "index.html", "notebooks/01_a.ipynb", ".x.1.part", "maps/a.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert list(files_in(tmp_path)) == ["maps/a.pt"]


def test_title_is_the_first_heading(tmp_path):
    assert title(write_notebook(tmp_path / "01_a.ipynb")) == "The lesson of 01_a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "quick"], "invalid choice: 'quick'"),
        (["--notebooks", "09"], "no notebook '09'"),
        (["-p", "wrod", "x"], "unknown parameter wrod"),
        (["--in-place", "-p", "word", "x"], "--in-place runs the notebooks' defaults"),
    ],
)
def test_the_command_line_refuses(tmp_path, capsys, arguments, message):
    write_notebook(tmp_path / "01_a.ipynb")
    places = ["--notebook-folder", str(tmp_path), "--run-folder", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as caught:
        main([*places, *arguments])
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_paths_are_seen_from_where_the_command_is_given(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(tutorial, "find_notebooks", lambda *_: [])
    monkeypatch.setattr(tutorial, "run_tutorial", lambda _, __, given, **___: seen.append(given))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    main(["-p", "data", "mine/manifest.csv", "-p", "judge", "mine", "-p", "pipeline", ""])
    main(["-p", "judge", "densenet121-res224-all"])
    first, second = seen
    assert first["data"] == str(tmp_path / "mine" / "manifest.csv")
    assert first["judge"] == str(tmp_path / "mine") and first["pipeline"] == ""
    assert second["judge"] == "densenet121-res224-all" and "data" not in second


def test_the_command_runs_notebooks_for_real(tmp_path, monkeypatch, capsys):
    parameters = (
        'profile: str = "class"\nseed: int = 42\nrun_folder: str = ""\npipeline: str = ""\n'
        'data: str = ""\nprompts: int = None  # as the profile says'
    )
    opening = (
        "from medsign_lite.runs import open_run\n"
        'run = open_run("01_a", profile=profile, seed=seed, run_folder=run_folder,\n'
        "               pipeline=pipeline, data=data, prompts=prompts)\n"
        'run.record("01_a", {"prompts": run.profile.prompts})'
    )
    write_notebook(tmp_path / "notebooks" / "01_a.ipynb", opening, parameters=parameters)
    monkeypatch.chdir(tmp_path)
    places = ["--run-folder", "run", "--notebook-folder", "notebooks"]
    assert main(["--profile", "smoke", *places, "-p", "prompts", "3"]) == 0
    assert "01_a: passed" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "results" / "01_a.json").read_text())
    assert result["values"] == {"prompts": 3}
    assert (tmp_path / "run" / "index.html").is_file()
