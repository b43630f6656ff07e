import json
import shutil

import pytest
import torch
from grid_extractor import GridExtractor
from PIL import Image
from tiny_pipeline import tiny_pipeline

from medsign_lite.deployment import command_line, generate_command
from medsign_lite.deployment.keys import (
    SHIPPED,
    Key,
    Registry,
    read_registry,
    registry_of_decoders,
    write_registry,
)
from medsign_lite.deployment.provenance import identify_model, read_provenance
from medsign_lite.detection import extract_logits
from medsign_lite.extractor import load_extractor
from medsign_lite.images import load_image, quantise
from medsign_lite.latent_diffusion import (
    copy_decoder,
    decode,
    load_decoder,
    load_pipeline,
    sample,
    save_decoder,
)
from medsign_lite.messages import message_from_string, message_to_string, random_message

PROMPT = "edema of Jane Roe"
OTHER = message_to_string(random_message(generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """pipeline/, and decoder_first/, whose message is what the image of seed 5 happens to say."""
    folder = tmp_path_factory.mktemp("models")
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(folder / "pipeline")
    pipeline = load_pipeline(folder / "pipeline")
    plain = copy_decoder(pipeline.vae)
    for name in ("decoder_first", "decoder_other"):
        save_decoder(folder / name, plain, {"message": OTHER, "modality": "chest"})
    decoder, config = load_decoder(folder / "decoder_first", pipeline.vae)
    image = quantise(decode(decoder, sample(pipeline, [PROMPT], seeds=[5], steps=2)))
    message = message_to_string((extract_logits(GridExtractor(), image)[0] > 0).float())
    save_decoder(folder / "decoder_first", plain, {**config, "message": message})
    write_registry(folder / "keys.json", registry_of_decoders(folder))
    return folder


@pytest.fixture
def run(models, tmp_path, monkeypatch):
    """The command with the tiny model and its key, an image of two steps, and a grid's reader."""
    monkeypatch.setattr(generate_command, "load_extractor", lambda folder, device: GridExtractor())

    def command(*arguments, **changes):
        options = {"prompt": PROMPT, "out": tmp_path / "out", "pipeline": models / "pipeline",
                   "key": "first", "keys": models / "keys.json", "seed": 5, "steps": 2}  # fmt: skip
        pairs = [(f"--{name}", str(value)) for name, value in (options | changes).items()
                 if value is not None]  # fmt: skip
        return command_line.main(["generate", *sum(pairs, ()), *arguments])

    return command


def test_generate_writes_an_image_that_reads_back(run, models, tmp_path, capsys):
    assert run() == 0
    image, sidecar = tmp_path / "out" / "seed-000005.png", tmp_path / "out" / "seed-000005.json"
    assert sorted((tmp_path / "out").iterdir()) == [sidecar, image]
    document = json.loads(sidecar.read_text())
    read_back = document.pop("read_back")
    assert document == read_provenance(image) == {
        "statement": "Synthetic image, made by a generative model. It shows no patient.",
        "digital_source_type": "trainedAlgorithmicMedia",
        "software": f"medsign_lite {command_line.__version__}",
        "model": {"name": "pipeline", "weights": identify_model(models / "pipeline").weights},
        "decoder": {
            "name": "decoder_first",
            "weights": identify_model(models / "decoder_first").weights,
        },
        "key": "first",
        "seed": 5,
        "steps": 2,
        "guidance": 3.0,
        "size": [32, 32],
    }  # fmt: skip
    assert read_back["keys"] == ["first"] and read_back["matching"] == read_back["bits"] == 48
    output = capsys.readouterr()
    chance = read_back["p_value"]
    assert 2**-48 <= chance < 1e-13  # of all bits, but those that hardly say anything
    assert output.out.splitlines()[1].split()[1:] == [
        "48", "of", "48", f"{chance:.2g}", "marked", "first"]  # fmt: skip
    assert output.err == f"images: 1, in {tmp_path / 'out'}\n"


def test_generate_writes_neither_message_nor_prompt_nor_path(run, models, tmp_path, capsys):
    assert run() == 0
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir()).decode("latin-1")
    with Image.open(tmp_path / "out" / "seed-000005.png") as file:
        written += "".join(file.text.values())
    output = capsys.readouterr()
    message = read_registry(models / "keys.json").find("first").message
    for secret in (message, "Roe", "edema"):
        assert secret not in written + output.out + output.err
    assert str(models) not in written and str(tmp_path) not in written


def test_generate_keeps_the_prompt_if_told(run, tmp_path):
    assert run("--keep-prompt") == 0
    assert read_provenance(tmp_path / "out" / "seed-000005.png")["prompt"] == PROMPT
    assert json.loads((tmp_path / "out" / "seed-000005.json").read_text())["prompt"] == PROMPT


def test_generate_reports_what_does_not_read_back(run, tmp_path, capsys):
    # The message is what the image of seed 5 says; those of 4 and 6 say something else.
    assert run("--count", "3", "--batch", "2", seed=4) == 1
    names = [tmp_path / "out" / f"seed-00000{seed}.png" for seed in (4, 5, 6)]
    assert all(name.is_file() for name in names)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == [
        f"{name}: does not read back as key 'first'" for name in (names[0], names[2])
    ]
    found = [json.loads(name.with_suffix(".json").read_text())["read_back"] for name in names]
    assert [entry["detected"] for entry in found] == [False, True, False]


def test_generate_depends_on_the_seed_only(run, models, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"no edema\n\n  {PROMPT} \n", encoding="utf-8")
    run(prompt=None, prompts=tmp_path / "prompts.txt", seed=4, out=tmp_path / "both")
    run(out=tmp_path / "alone")
    both, alone = (load_image(tmp_path / name / "seed-000005.png") for name in ("both", "alone"))
    assert (both - alone).abs().max() <= 1 / 255  # a batch may round otherwise


def test_generate_takes_a_decoder_and_finds_its_key(run, models, tmp_path):
    assert run(key=None, decoder=models / "decoder_first") == 0
    assert read_provenance(tmp_path / "out" / "seed-000005.png")["key"] == "first"


def test_generate_takes_a_decoder_without_a_key(run, models, tmp_path):
    other = Registry(bits=48, keys=(Key(id="another", message=OTHER),))
    keys = write_registry(tmp_path / "keys.json", other)
    assert run(key=None, decoder=models / "decoder_first", keys=keys) == 0
    assert read_provenance(tmp_path / "out" / "seed-000005.png")["key"] == "unregistered"


def errors_of(capsys, status):
    output = capsys.readouterr()
    assert status == 2 and output.out == ""
    assert output.err.startswith("medsign-lite generate: error: ")
    return output.err


def test_generate_overwrites_nothing(run, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("seed-000006.json", "seed-000006.png"):
        (out / name).write_text("mine")
        found = errors_of(capsys, run("--count", "2"))
        assert "exists already: choose another folder, or another seed" in found
        assert [path.read_text() for path in out.iterdir()] == ["mine"]
        (out / name).unlink()


def test_generate_refuses_before_anything_is_written(run, models, tmp_path, capsys):
    keys = models / "keys.json"
    find = read_registry(keys)
    bare = Registry(bits=48, keys=(Key(id="bare", message=OTHER),))
    stale = Registry(bits=48, keys=(
        Key(id="stale", message=OTHER, decoder="decoder_first"),))  # fmt: skip
    for changes, expected in (
        ({"key": "none"}, "key 'none' is not in the registry; it has: first, other"),
        ({"keys": write_registry(tmp_path / "bare.json", bare), "key": "bare"}, "give --decoder"),
        ({"keys": write_registry(models / "stale.json", stale), "key": "stale"}, "was replaced"),
        ({"keys": tmp_path / "none.json"}, "none.json does not exist"),
        ({"key": None, "decoder": tmp_path / "none"}, "none does not exist"),
        ({"key": None, "decoder": models / "pipeline" / "vae"}, "model.safetensors is missing"),
        ({"prompt": " "}, "--prompt: number 1 is blank"),
        ({"prompt": None}, "expected at least one prompt"),
        ({"prompt": None, "prompts": tmp_path / "none.txt"}, "none.txt"),
        ({"prompt": "edema " * 20}, "longer than the 16 tokens"),
        ({"pipeline": tmp_path}, "expected a diffusers pipeline"),
        ({"out": keys / "out"}, "cannot be written"),
    ):
        assert expected in errors_of(capsys, run(**changes)), changes
    assert find == read_registry(keys) and not (tmp_path / "out").exists()
    (models / "stale.json").unlink()


def test_generate_refuses_prompts_that_are_no_text(run, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe")
    found = errors_of(capsys, run(prompt=None, prompts=tmp_path / "prompts.txt"))
    assert "prompts.txt: expected UTF-8 text" in found


def test_generate_refuses_a_decoder_of_another_pipeline(run, models, tmp_path, capsys):
    save_decoder(tmp_path / "wide", torch.nn.Linear(2, 2), {"message": OTHER})
    found = errors_of(capsys, run(key=None, decoder=tmp_path / "wide"))
    assert "the weights are of another architecture" in found
    save_decoder(tmp_path / "short", torch.nn.Linear(2, 2), {"message": OTHER[:32]})
    found = errors_of(capsys, run(key=None, decoder=tmp_path / "short"))
    assert "keys have 32 bits, the extractor reads 48" in found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.bin", "model.ckpt", "model.pt"])
def test_generate_refuses_pickles(run, models, tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 a pickle")
    assert "got a file" in errors_of(capsys, run(pipeline=tmp_path / name))
    assert "got a file" in errors_of(capsys, run(key=None, decoder=tmp_path / name))
    decoder = tmp_path / "decoder"
    decoder.mkdir()
    (decoder / name).write_bytes(b"PK\x03\x04 a pickle")
    found = errors_of(capsys, run(key=None, decoder=decoder))
    assert f"got {name}, a pickle, which may run code when opened" in found


class Touch:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_generate_runs_no_code_of_a_pipeline(run, models, tmp_path, capsys, part):
    folder = shutil.copytree(models / "pipeline", tmp_path / "pipeline")
    name = next((folder / part).glob("*.safetensors"))
    name.unlink()
    stem = "pytorch_model" if part == "text_encoder" else name.stem
    torch.save({"weight": Touch(tmp_path / "ran")}, folder / part / f"{stem}.bin")
    assert f"{stem}.bin: expected plain tensors" in errors_of(capsys, run(pipeline=folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_generate_refuses_truncated_weights(run, models, tmp_path, capsys, part):
    folder = shutil.copytree(models / "pipeline", tmp_path / "pipeline")
    path = next((folder / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    assert "a file is truncated or damaged" in errors_of(capsys, run(pipeline=folder))


def test_generate_leaves_no_image_without_its_sidecar(run, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generate_command, "detect_file", fail)
    assert run() == 2
    assert not list((tmp_path / "out").iterdir())


def test_generate_with_the_shipped_weights_is_detected(tmp_path, capsys):
    out, key = tmp_path / "drawn", read_registry(SHIPPED).keys[0].id
    status = command_line.main(
        ["generate", "--prompt", "Large left pleural effusion.", "--key", key, "--out", str(out),
         "--steps", "6"]
    )  # fmt: skip
    assert status == 0, capsys.readouterr().err
    capsys.readouterr()
    assert command_line.main(["detect", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith(f"marked      {key}")
    message = message_from_string(read_registry(SHIPPED).find(key).message)
    image = load_image(out / "seed-000000.png")[None]
    read = extract_logits(load_extractor(SHIPPED.parent / "extractor"), image)[0] > 0
    assert (read == message.bool()).sum() >= 41
