"""The stages of the shipped weights: their order, what each is given, and what is not repeated."""

import json
from pathlib import Path

import pytest

from medsign_lite import bundle
from medsign_lite.deployment.keys import Registry
from medsign_lite.results import record_result

ORDER = [
    *("autoencoder", "denoiser", "classifier", "classifier_mixer", "segmenter", "extractor"),
    *("cache_chest", "cache_fundus", "message_chest", "message_fundus"),
    *("decoder_chest", "decoder_fundus", "keys"),
]
MODULES = (
    *("autoencoder_training", "denoiser_training", "judge_training"),
    *("pretraining", "sample_cache", "finetuning"),
)
# What each command leaves in its folder, as the next one expects it.
MADE = {
    "autoencoder": "vae/config.json",
    "denoiser": "pipeline/model.safetensors",
    "extractor": "extractor/model.safetensors",
    "decoder_chest": "decoder/model.safetensors",
    "decoder_fundus": "decoder/model.safetensors",
    "cache_chest": "cache.safetensors",
    "cache_fundus": "cache.safetensors",
}


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """Each training replaced by one that notes its arguments and leaves the expected files."""
    given = {}

    def note(arguments):
        out = Path(arguments[arguments.index("--out") + 1])
        for option in ("--autoencoder", "--cache", "--extractor", "--pipeline", "--start"):
            if option in arguments:
                needed = Path(arguments[arguments.index(option) + 1])
                assert needed.is_dir() and any(needed.iterdir()), f"{out.name} lacks {needed}"
        given[out.name] = arguments
        for name in [MADE[out.name]] if out.name in MADE else ["model.safetensors", "config.json"]:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(out.name)
        (out / "log.jsonl").write_text(json.dumps({"loss": 1.0}) + "\n" + json.dumps({"psnr": 34}))

    def message(arguments):
        out = Path(arguments[arguments.index("--out") + 1])
        given[out.parent.name] = arguments
        bits = 8 * arguments[arguments.index("--seed") + 1]
        record_result(out, {"message": bits}, {})

    def registry(folder, *, note):
        assert (folder / "decoder_fundus").is_dir() and (folder / "decoder_chest").is_dir()
        given["keys"] = note
        return Registry(bits=48)

    monkeypatch.setattr(bundle, "registry_of_decoders", registry)
    monkeypatch.setattr(bundle.neutral_messages, "main", message)
    for module in MODULES:
        monkeypatch.setattr(getattr(bundle, module), "main", note)
    options = ["--data", "phantoms", "--work", str(tmp_path / "work")]
    return given, [*options, "--out", str(tmp_path / "weights"), "--device", "cpu"]


def test_every_stage_runs_once_in_order(commands, tmp_path, capsys):
    given, options = commands
    bundle.main(options)
    assert list(given) == ORDER
    shipped = {path.name for path in (tmp_path / "weights").iterdir()}
    expected = {"pipeline", "extractor", "decoder_chest", "decoder_fundus"}
    assert shipped == expected | {"classifier", "classifier_mixer", "segmenter", "keys.json"}
    assert "mixer" in given["classifier_mixer"] and "mixer" not in given["classifier"]
    given.clear()
    capsys.readouterr()
    bundle.main(options)
    assert not given and capsys.readouterr().out.count("already at") == len(ORDER)


def test_what_was_made_of_other_weights_is_made_again(commands, tmp_path):
    given, options = commands
    bundle.main(options)
    given.clear()
    (tmp_path / "weights" / "extractor" / "model.safetensors").write_text("another")
    bundle.main(options)
    made = ["message_chest", "message_fundus", "decoder_chest", "decoder_fundus"]
    assert list(given) == made  # the decoders of the toy are the same again, and so are the keys
    given.clear()
    record = tmp_path / "work" / "message_chest.json"
    document = json.loads(record.read_text())
    del document["config"]["made_of"]  # of an earlier version, which does not say
    record.write_text(json.dumps(document))
    bundle.main(options)
    assert not given


def test_weights_that_were_there_before_are_replaced(commands, tmp_path):
    given, options = commands
    shipped = tmp_path / "weights" / "extractor" / "model.safetensors"
    shipped.parent.mkdir(parents=True)
    shipped.write_text("of the clone")
    bundle.main([*options, "--only", "extractor"])
    assert list(given) == ["extractor"] and shipped.read_text() == "extractor"


def test_only_and_share(commands, tmp_path):
    given, options = commands
    bundle.main([*options, "--only", "classifier", "--share", "0.5"])
    assert list(given) == ["classifier"]
    steps = given["classifier"][given["classifier"].index("--steps") + 1]
    assert int(steps) == bundle.STEPS["classifier"] / 2
    result = json.loads((tmp_path / "work" / "classifier.json").read_text())
    assert result["values"] == {"psnr": 34}


def test_a_trial_is_not_taken_for_the_finished_weights(commands, capsys):
    given, options = commands
    bundle.main([*options, "--only", "extractor", "--share", "0.01"])
    given.clear()
    bundle.main([*options, "--only", "extractor"])
    assert "extractor" in given and "already" not in capsys.readouterr().out


def test_the_two_decoders_carry_different_messages(commands):
    given, options = commands
    bundle.main(options)
    names = ("decoder_chest", "decoder_fundus")
    messages = [given[name][given[name].index("--message") + 1] for name in names]
    assert messages == ["11111111", "22222222"]  # what the stage before it wrote


def test_unfinished_copy_is_never_found(commands, tmp_path, monkeypatch):
    given, options = commands

    def fails(source, target, **options):
        (Path(target) / "half").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bundle.shutil, "copytree", fails)
        with pytest.raises(KeyboardInterrupt):
            bundle.main([*options, "--only", "extractor"])
    assert not (tmp_path / "weights" / "extractor").exists()
    bundle.main([*options, "--only", "extractor"])
    assert (tmp_path / "weights" / "extractor" / "model.safetensors").is_file()


def test_unknown_stage_is_refused(commands, capsys):
    with pytest.raises(SystemExit):
        bundle.main([*commands[1], "--only", "tokenizer"])
    assert "unknown stages ['tokenizer']" in capsys.readouterr().err
