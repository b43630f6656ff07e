import subprocess
import sys
import tomllib

import pytest

from medsign_lite import __version__
from medsign_lite.deployment import command_line, detect_command


def test_help_loads_nothing_heavy(root):
    program = (
        "import sys\n"
        "from medsign_lite.deployment.command_line import main\n"
        "for arguments in ([], ['detect'], ['generate'], ['keys'], ['keys', 'add']):\n"
        "    try:\n"
        "        main([*arguments, '--help'])\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'pydicom', 'pandas'}\n"
        "print('loaded:', *sorted(heavy & set(sys.modules)))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    lines = output.stdout.splitlines()
    assert lines[-1].strip() == "loaded:" and output.stderr == ""
    for text in (
        "find watermarks in images",
        "  1  some image could not; its row says why",
        "  1  some image does not read back; it is named",
        "without their messages",
        "(15 of 48)",
    ):
        assert text in output.stdout
    assert str(root) not in output.stdout  # defaults are named, not spelt out as paths


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        command_line.main(["--version"])
    assert capsys.readouterr().out == f"medsign-lite {__version__}\n"


@pytest.mark.parametrize(
    "arguments, match",
    [
        ([], "required: COMMAND"),
        (["embed"], "invalid choice: 'embed'"),
        (["detect"], "required: IMAGE_OR_FOLDER"),
        (["detect", "a.png", "--keys", "k", "--message", "01"], "not allowed with"),
        (["generate", "--prompt", "x", "--out", "o"], "one of the arguments --key --decoder"),
        (["generate", "--key", "a", "--out", "o", "--seed", "-1"], "expected at least 0, got -1"),
        (["generate", "--key", "a", "--out", "o", "--count", "0"], "expected at least 1, got 0"),
        (["generate", "--key", "a", "--out", "o", "--steps", "x"], "invalid whole number value"),
        (["generate", "--key", "a", "--out", "o", "--guidance", "nan"], "expected at least 0"),
    ],
    ids=["none", "unknown", "no-image", "two-keys", "no-key", "seed", "count", "steps", "guidance"],
)
def test_bad_usage_is_status_2(arguments, match, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main(arguments)
    assert match in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError("why"), ValueError("why"), RuntimeError("why")])
def test_main_says_what_stopped_a_command(monkeypatch, capsys, error):
    def stop(options):
        raise error

    monkeypatch.setattr(detect_command, "run", stop)
    assert command_line.main(["detect", "a.png"]) == 2
    assert capsys.readouterr().err == "medsign-lite detect: error: why\n"


def test_main_ends_quietly_if_interrupted(monkeypatch, capsys):
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(detect_command, "run", stop)
    assert command_line.main(["detect", "a.png"]) == 130
    assert capsys.readouterr().err == ""


def test_main_ends_quietly_if_nobody_reads_on(root):
    program = (
        "import sys, types\n"
        "command = types.ModuleType('medsign_lite.deployment.detect_command')\n"
        "command.run = lambda options: [print('row', flush=True) for _ in range(100_000)]\n"
        "sys.modules['medsign_lite.deployment.detect_command'] = command\n"
        "from medsign_lite.deployment.command_line import main\n"
        "sys.exit(main(['detect', 'a.png']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "row\n"
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, "")
    process.stderr.close()


def test_main_hides_no_mistake_of_ours(monkeypatch):
    def stop(options):
        raise KeyError("ours")

    monkeypatch.setattr(detect_command, "run", stop)
    with pytest.raises(KeyError):
        command_line.main(["detect", "a.png"])


def test_the_script_is_declared(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"medsign-lite": "medsign_lite.deployment.command_line:main"}
