import io

import pytest
import torch

from medsign_lite.checkpoints import save_checkpoint
from medsign_lite.deployment import command_line
from medsign_lite.deployment.keys import read_registry
from medsign_lite.messages import message_to_string, random_messages

MESSAGES = [
    message_to_string(message)
    for message in random_messages(3, 48, generator=torch.Generator().manual_seed(0))
]


def save_decoder(folder, message):
    config = {"kind": "decoder", "message": message, "modality": "chest"}
    return save_checkpoint(folder, {"weight": torch.zeros(1)}, config)


def run(*arguments):
    return command_line.main(["keys", *map(str, arguments)])


def test_keys_add_makes_a_registry_and_adds_to_it(tmp_path, capsys):
    path = tmp_path / "registry" / "keys.json"
    decoder = save_decoder(tmp_path / "weights" / "d", MESSAGES[0])
    assert run("add", "--keys", path, "--id", "first", "--decoder", decoder, "--note", "ours") == 0
    grouped = f"{MESSAGES[1][:24]}_{MESSAGES[1][24:]}"
    assert run("add", "--keys", path, "--id", "second", "--message", grouped,
               "--modality", "fundus") == 0  # fmt: skip
    first, second = read_registry(path).keys
    assert (first.id, first.message, first.modality, first.note) == (
        "first", MESSAGES[0], "chest", "ours")  # fmt: skip
    assert first.decoder == "../weights/d" and (path.parent / first.decoder).samefile(decoder)
    assert (second.message, second.modality, second.decoder) == (MESSAGES[1], "fundus", "")
    output = capsys.readouterr().out
    assert "added 'second', keys: 2" in output and MESSAGES[1] not in output


def test_keys_add_reads_a_message_from_standard_input(tmp_path, capsys, monkeypatch):
    path = tmp_path / "keys.json"
    for text, status in (
        (f"{MESSAGES[0][:24]} {MESSAGES[0][24:30]}\n{MESSAGES[0][30:]}\n", 0), ("", 2), ("01x", 2),
    ):  # fmt: skip
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert run("add", "--keys", path, "--id", f"key-{status}", "--message", "-") == status
    assert [key.message for key in read_registry(path).keys] == [MESSAGES[0]]
    assert capsys.readouterr().err.count("expected a message of 0 and 1") == 2


def test_keys_add_refuses_and_leaves_the_file(tmp_path, capsys):
    path = tmp_path / "keys.json"
    add = ("add", "--keys", path, "--id")
    assert run(*add, "first", "--message", MESSAGES[0]) == 0
    before = path.read_bytes()
    close = MESSAGES[0][:-1] + "10"[int(MESSAGES[0][-1])]
    for arguments, error in (
        (("first", "--message", MESSAGES[1]), "the id 'first' is in the registry already"),
        (("second", "--message", close), "these differ in 1"),
        (("second", "--message", MESSAGES[1][:32]), "expected a message of 48 bits, got 32"),
        (("second", "--decoder", tmp_path / "none"), "none does not exist"),
    ):
        assert run(*add, *arguments) == 2
        assert error in capsys.readouterr().err
    assert path.read_bytes() == before


def test_keys_list_shows_no_message(tmp_path, capsys):
    path = tmp_path / "keys.json"
    run("add", "--keys", path, "--id", "first", "--message", MESSAGES[0], "--note", "the ward's")
    capsys.readouterr()
    assert run("list", "--keys", path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["id", "modality", "decoder", "note"]
    assert lines[1].split() == ["first", "the", "ward's"] and MESSAGES[0] not in "".join(lines)


def test_keys_make_writes_into_the_folder_and_replaces_only_if_told(tmp_path, capsys):
    save_decoder(tmp_path / "decoder_chest", MESSAGES[0])
    assert run("make", "--weights", tmp_path) == 0
    save_decoder(tmp_path / "decoder_chest", MESSAGES[2])
    assert run("make", "--weights", tmp_path) == 2
    assert "keys.json exists already: --replace" in capsys.readouterr().err
    assert read_registry(tmp_path / "keys.json").find("chest").message == MESSAGES[0]
    assert run("make", "--weights", tmp_path, "--replace", "--note", "ours") == 0
    key = read_registry(tmp_path / "keys.json").find("chest")
    assert (key.message, key.decoder, key.note) == (MESSAGES[2], "decoder_chest", "ours")


@pytest.mark.parametrize("arguments", [("add",), ("add", "--keys", "a", "--id", "b"), ()])
def test_keys_without_what_it_needs_is_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert "required" in capsys.readouterr().err
