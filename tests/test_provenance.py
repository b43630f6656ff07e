import hashlib
import json

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medsign_lite import __version__
from medsign_lite.deployment.provenance import (
    CHUNK,
    STATEMENT,
    Model,
    Provenance,
    file_claim,
    identify_model,
    read_provenance,
    write_synthetic_png,
)
from medsign_lite.images import load_image, quantise


def provenance(**changes):
    settings = {
        "model": Model(name="pipeline", weights={"unet/model.safetensors": "ab"}),
        "decoder": Model(name="decoder_chest", weights={"model.safetensors": "cd"}),
        "key": "chest",
        "seed": 7,
        "steps": 25,
        "guidance": 3.0,
        "size": (8, 9),
    }
    return Provenance(**(settings | changes))


def test_identify_model_hashes_weights_only(tmp_path):
    folder = tmp_path / "my_model"
    for name in ("unet/a.safetensors", "b.bin", "safety_checker/c.safetensors", "unet/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    expected = {
        name: hashlib.sha256(name.encode()).hexdigest() for name in ("b.bin", "unet/a.safetensors")
    }
    assert identify_model(folder) == Model(name="my_model", weights=expected)


def test_identify_model_names_the_folder_however_it_is_given(tmp_path, monkeypatch):
    (tmp_path / "my_model").mkdir()
    (tmp_path / "my_model" / "a.safetensors").touch()
    monkeypatch.chdir(tmp_path / "my_model")
    assert identify_model(".").name == "my_model"


def test_identify_model_refuses_a_folder_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected weights ending in .safetensors or .bin"):
        identify_model(tmp_path)


def test_provenance_document_by_hand():
    assert provenance().document() == {
        "statement": STATEMENT,
        "digital_source_type": "trainedAlgorithmicMedia",
        "software": f"medsign_lite {__version__}",
        "model": {"name": "pipeline", "weights": {"unet/model.safetensors": "ab"}},
        "decoder": {"name": "decoder_chest", "weights": {"model.safetensors": "cd"}},
        "key": "chest",
        "seed": 7,
        "steps": 25,
        "guidance": 3.0,
        "size": [8, 9],
    }
    assert provenance(prompt="Röntgen").document()["prompt"] == "Röntgen"


@pytest.mark.parametrize("prompt", [None, "Erguß links – «groß»"], ids=["left-out", "kept"])
def test_write_synthetic_png_round_trip(tmp_path, prompt):
    image = torch.rand(3, 8, 9) * 1.4 - 0.2
    own = provenance(prompt=prompt)
    path = write_synthetic_png(image, tmp_path / "new" / "a.png", own)
    assert load_image(path).equal(quantise(image))
    assert read_provenance(path) == own.document()
    with Image.open(path) as file:
        assert file.text["Description"] == STATEMENT and file.mode == "RGB"
        assert file.text["Software"] == f"medsign_lite {__version__}"


def test_write_synthetic_png_is_the_same_file_again(tmp_path):
    image = torch.rand(3, 8, 9)
    first = write_synthetic_png(image, tmp_path / "a.png", provenance())
    second = write_synthetic_png(image, tmp_path / "b.png", provenance())
    assert first.read_bytes() == second.read_bytes()


def test_write_synthetic_png_overwrites_nothing(tmp_path):
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(FileExistsError, match="a.png exists already: choose another folder"):
        write_synthetic_png(torch.rand(3, 8, 9), tmp_path / "a.png", provenance())
    assert (tmp_path / "a.png").read_text() == "mine"


def test_write_synthetic_png_refuses(tmp_path):
    with pytest.raises(ValueError, match="ending in .png .*'a.jpg'"):
        write_synthetic_png(torch.rand(3, 8, 9), tmp_path / "a.jpg", provenance())
    with pytest.raises(ValueError, match=r"expected an image \(3, H, W\), got \(8, 9\)"):
        write_synthetic_png(torch.rand(8, 9), tmp_path / "a.png", provenance())
    with pytest.raises(ValueError, match="a.png holds NaN"):
        write_synthetic_png(torch.full((3, 8, 9), torch.nan), tmp_path / "a.png", provenance())
    assert not list(tmp_path.iterdir())


def test_read_provenance_of_an_image_that_says_nothing(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    Image.new("L", (4, 4)).save(tmp_path / "a.jpg")
    assert read_provenance(tmp_path / "a.png") is None
    assert read_provenance(tmp_path / "a.jpg") is None
    assert file_claim(tmp_path / "a.png") == file_claim(tmp_path / "a.jpg") == ""
    assert json.dumps(provenance().document())  # plain JSON


def test_file_claim_names_the_key_and_never_the_prompt(tmp_path):
    path = write_synthetic_png(torch.rand(3, 8, 9), tmp_path / "a.png", provenance(prompt="edema"))
    assert file_claim(path) == "synthetic, key chest"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", ""),
        ("[1]", ""),
        ("[" * 100_000, ""),
        ("{}", "synthetic"),
        ('{"key": 3}', "synthetic"),
        ('{"key": "\\u001b[2J"}', "synthetic"),
        (json.dumps({"key": "x" * 65}), "synthetic"),
    ],
    ids=["damaged", "list", "deep", "nothing", "number", "control", "long"],
)
def test_file_claim_of_what_somebody_else_has_written(tmp_path, text, expected):
    chunk = PngInfo()
    chunk.add_itxt(CHUNK, text)
    Image.new("L", (4, 4)).save(tmp_path / "a.png", pnginfo=chunk)
    assert file_claim(tmp_path / "a.png") == expected


def test_file_claim_of_what_is_no_picture_of_pillow_s_or_missing(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"DICM" * 50)
    assert file_claim(tmp_path / "a.dcm") == ""
    with pytest.raises(FileNotFoundError):
        file_claim(tmp_path / "b.png")
