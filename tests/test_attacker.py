import pytest
import torch
from grid_extractor import GridExtractor
from tiny_pipeline import tiny_autoencoder, tiny_pipeline

from medsign_lite.adversary import attacker
from medsign_lite.adversary.attack_measurements import HELD_OUT
from medsign_lite.checkpoints import save_checkpoint, weights_fingerprint
from medsign_lite.data import Record, write_manifest
from medsign_lite.images import save_image
from medsign_lite.latent_cache import write_latent_cache
from medsign_lite.latent_diffusion import copy_decoder, save_decoder
from medsign_lite.messages import message_to_string, random_message
from medsign_lite.results import read_result

MESSAGE = message_to_string(random_message(generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """pipeline/, decoder_chest/, another autoencoder, manifest.csv and a cache of 4 latents."""
    torch.manual_seed(0)
    folder, pipeline = tmp_path_factory.mktemp("models"), tiny_pipeline()
    pipeline.save_pretrained(folder / "pipeline")
    save_decoder(folder / "decoder_chest", copy_decoder(pipeline.vae), {"message": MESSAGE})
    tiny_autoencoder().save_pretrained(folder / "tiny")
    save_checkpoint(folder / "extractor", {"w": torch.ones(1)}, {"kind": "extractor"})
    records = [Record(id=f"{split}{i}", image=folder / "image.png", modality="chest", split=split,
                      report=" ".join(["edema"] * (i % 6)) or "no") for split in ("train", "test")
               for i in range(HELD_OUT + 2)]  # fmt: skip
    save_image(torch.rand(3, 32, 32), folder / "image.png")
    write_manifest(folder / "manifest.csv", records)
    write_latent_cache(folder / "cache", torch.randn(4, 4, 16, 16), torch.zeros(4, 16, 16),
                       ["no", "edema", "edema edema", "edema edema edema"])  # fmt: skip
    return folder


@pytest.fixture
def run(models, tmp_path, monkeypatch):
    monkeypatch.setattr(attacker, "load_extractor", lambda folder, device: GridExtractor())

    def command(*arguments, **changes):
        options = {"modality": "chest", "images": 4, "data": models / "manifest.csv",
                   "weights": models, "cache": models / "cache", "own-images": 2, "counts": 2,
                   "autoencoder": models / "tiny", "work": tmp_path / "work",
                   "out": tmp_path / "out.json"}  # fmt: skip
        pairs = [(f"--{name}", str(value)) for name, value in (options | changes).items()
                 if value is not None]  # fmt: skip
        attacker.main([*sum(pairs, ()), *arguments])
        return read_result(tmp_path / "out.json")

    return command


CHOSEN = ("--only", "unattacked", "autoencoder-tiny", "forgery-blurred")


def test_main_records_rows_with_their_configuration(run, models, tmp_path):
    document = run(*CHOSEN)
    values, config = document["values"], document["config"]
    assert [*values] == ["unattacked", "regeneration", "forgery"]
    assert [row["model"] for row in values["regeneration"]] == ["tiny"]
    assert {row["averaged"] for row in values["forgery"]} == {2}
    used = ("pipeline", "extractor", "decoder_chest")
    assert config["weights"] == weights_fingerprint(models, used)
    assert config["modality"] == "chest" and [*config["parts"]] == [*CHOSEN[1:]]
    assert str(models) not in str(document) and MESSAGE not in str(document)
    (row,) = values["regeneration"]
    assert row["command"] == (
        "python -m medsign_lite.adversary.attacker --modality chest --images 4 --own-images 2 "
        "--seed 0 --counts 2 --data MANIFEST --out FILE --weights WEIGHTS --cache CACHE "
        "--autoencoder tiny --only autoencoder-tiny"
    )
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
    assert len(times) == 3
    assert run(*CHOSEN)["values"] == values
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_main_samples_from_the_reports_where_no_cache_is_given(run):
    document = run("--only", "unattacked", cache=None, images=3)
    assert document["values"]["unattacked"][0]["images"] == 3


def test_main_takes_another_message(run, tmp_path):
    turned = "".join("10"[int(bit)] for bit in MESSAGE)
    documents = [
        run("--only", "unattacked", message=text, work=tmp_path / text)
        for text in (MESSAGE, turned)
    ]
    own, other = (document["values"]["unattacked"] for document in documents)
    assert documents[0]["config"]["weights"] is None  # not of the weights as they are
    assert own[0]["bit_accuracy"] == pytest.approx(1 - other[0]["bit_accuracy"])


def test_main_refuses(run, models, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("--only", "curve-fog")
    assert "unknown parts ['curve-fog']: expected some of unattacked" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds 4 latents, 5 were asked for"):
        run(images=5)
    with pytest.raises(ValueError, match=f"{HELD_OUT + 3} chest reports are needed"):
        run(images=HELD_OUT + 3)
    with pytest.raises(ValueError, match="3 images of the attacker and 32 more are needed"):
        run(**{"own-images": 3})
    with pytest.raises(ValueError, match=r"different names, got \['original', 'tiny', 'tiny'\]"):
        run("--autoencoder", str(models / "tiny"), str(models / "tiny"))
    with pytest.raises(ValueError, match="a message of 48 bits, got 2"):
        run(message="10")
    with pytest.raises(FileNotFoundError, match="expected an autoencoder"):
        run(autoencoder=tmp_path)
