"""What the commands of all data sets share."""

from pathlib import Path

import pytest

from data_prep.command_line import add_counts, data_set_parser, run
from data_prep.conversion import Summary


def test_run_ends_in_one_line_without_a_traceback(capsys):
    def prepare(error=None):
        if error:
            raise error
        return Path("manifest.csv"), Summary()

    run(prepare)
    assert "kept 0" in capsys.readouterr().out
    for error in (ValueError("wrong"), OSError(28, "full"), ImportError("missing")):
        with pytest.raises(SystemExit, match="^stopped: .*(wrong|full|missing)") as caught:
            run(prepare, error=error)
        assert caught.value.__suppress_context__


def test_data_set_parser_needs_both_folders(capsys):
    with pytest.raises(SystemExit):
        data_set_parser("folder", "What it does.").parse_args(["--source", "a"])
    assert "required: --out" in capsys.readouterr().err
    options = data_set_parser("folder", "", size=96).parse_args("--source a --out b".split())
    assert (options.size, options.workers, options.seed) == (96, None, 0)


def test_add_counts_says_its_defaults():
    parser = data_set_parser("folder", "")
    add_counts(parser, train=6000, test=None)
    options = parser.parse_args("--source a --out b --test 7".split())
    assert (options.train, options.test) == (6000, 7)
    assert "train images at most (default: 6000)" in parser.format_help()
    assert "test images at most (default: all)" in parser.format_help()
