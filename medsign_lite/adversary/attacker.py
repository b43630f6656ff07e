"""What an attacker would do to the watermark of a decoder, measured and recorded.

    python -m medsign_lite.adversary.attacker --modality chest --images 500 --data MANIFEST \\
        --out results/attacker_chest.json

Strength curves of every attack, regeneration, purification, averaging and forging, each in parts.
A finished part is kept under --work and not repeated, so a run that was killed goes on when the
same command is given again; with `--only` the file holds the named parts alone.

What the watermark does not protect against, whatever the figures say:

- Whoever has the extractor can read every mark. The bundled one is public, so its marks are no
  secret, and an image can be optimised against it pixel by pixel until it reads nothing, or reads
  a message of somebody else's choice. Keep an extractor that has to resist attacks to yourself.
- The message belongs to a decoder, not to an image: all images of a decoder carry the same one. It
  does not tell one image from another, and what they have in common can be collected from many of
  them, subtracted, or pasted on images that never came from the generator. "Marked" therefore does
  not prove that the generator made an image.
- The mark is made by the decoder alone, out of latents that carry none. Whoever holds the latents
  or the model decodes with the original decoder, or with any other, and there is no mark at all.
- Whoever holds the watermarking decoder can train the mark out of it with a few clean images.
- Any generative model draws an image again. The mark may be lost on the way, and a model that did
  the work well leaves nothing to see.
- Strong enough distortion removes every mark. The question is only whether the image is still of
  use; in a radiograph a little blur may be the price that an attacker gladly pays.
- No mark is no proof of a real image: other generators do not mark theirs.
- Whether an image was changed after it was marked is not detected: this watermark is made to
  survive changes, not to reveal them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from medsign_lite.adversary.attack_measurements import HELD_OUT, Target, parts
from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.adversary.forgery import COUNTS
from medsign_lite.adversary.regeneration import load_autoencoder
from medsign_lite.checkpoints import weights_fingerprint
from medsign_lite.data import MODALITIES, read_manifest
from medsign_lite.extractor import load_extractor
from medsign_lite.latent_diffusion import BUNDLED, Autoencoder, load_decoder, load_pipeline
from medsign_lite.messages import message_from_string
from medsign_lite.records.kept_parts import measure_parts
from medsign_lite.records.table_samples import table_latents, table_records
from medsign_lite.results import ROOT, record_result
from medsign_lite.training.processor import tune_processor

TINY_AUTOENCODER = ROOT.parent / "shared" / "data" / "taesd"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medsign_lite.adversary.attacker", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--modality", choices=MODALITIES, required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--data", type=Path, required=True, help=(
        "manifest: prompts from its test split, the attacker's own images from its train split"
    ))  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="JSON file to record")
    parser.add_argument("--weights", type=Path, default=BUNDLED.parent, help=(
        "folder with pipeline, extractor and decoder_MODALITY"))  # fmt: skip
    parser.add_argument("--pipeline", type=Path, help="another diffusers folder")
    parser.add_argument("--extractor", type=Path, help="another extractor's folder")
    parser.add_argument("--decoder", type=Path, help="another watermarking decoder's folder")
    parser.add_argument("--message", help="its bits; default: as the decoder's folder says")
    parser.add_argument("--cache", type=Path, help="latents to draw; default: sampled anew")
    parser.add_argument("--autoencoder", type=Path, nargs="*", default=[
        path for path in (TINY_AUTOENCODER,) if path.is_dir()
    ], help="folders of other autoencoders to regenerate with")  # fmt: skip
    parser.add_argument("--own-images", type=int, default=256, help="the attacker's clean ones")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="to average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="PART", help="for example curve-jpeg")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "attacker", help=(
        "samples and finished parts"))  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    tune_processor()
    work = options.work / f"{options.modality}-{options.images}"
    target = _target(options, work)
    others = _autoencoders(options.autoencoder, options.device)
    every = parts(target, work, autoencoders=others, counts=options.counts)
    if unknown := set(options.only or ()) - set(every):
        parser.error(f"unknown parts {sorted(unknown)}: expected some of {', '.join(every)}")
    chosen = {name: every[name] for name in options.only or every}
    groups = measure_parts(target, chosen, keep=work / "parts", command=_command(options))
    settings = {name: part.settings for name, part in chosen.items()}
    config = {"modality": options.modality, "weights": _fingerprint(options)} | target.config()
    config["parts"] = settings
    record_result(options.out, groups, config)
    print(f"recorded: {', '.join(groups)} in {options.out}")


def _command(options: argparse.Namespace) -> str:
    """What measures the same again, with words in capitals for folders and files; of another
    autoencoder's folder the last part, which tells it from others."""
    words = [f"python -m medsign_lite.adversary.attacker --modality {options.modality}"]
    words += [f"--images {options.images} --own-images {options.own_images} --seed {options.seed}"]
    words += [f"--counts {' '.join(map(str, options.counts))} --data MANIFEST --out FILE"]
    others = ("weights", "pipeline", "extractor", "decoder", "message", "cache")
    given = (name for name in others if getattr(options, name) not in (None, BUNDLED.parent))
    words += [f"--{name} {name.upper()}" for name in given]
    names = [folder.name for folder in options.autoencoder]
    return " ".join([*words, *(["--autoencoder", *names] if names else [])])


def _fingerprint(options: argparse.Namespace) -> str | None:
    """Of the networks in --weights, or None if others took part."""
    if any((options.pipeline, options.extractor, options.decoder, options.message)):
        return None
    return weights_fingerprint(options.weights, weights_of(options.modality))


def weights_of(modality: str) -> tuple[str, ...]:
    """Sub-folders of the weights that an attacker's figures depend on."""
    return ("pipeline", "extractor", f"decoder_{modality}")


def _autoencoders(folders: Sequence[Path], device: str) -> dict[str, Autoencoder]:
    """By the folders' names, which the rows are told apart by."""
    names = ["original", *(folder.name for folder in folders)]
    if len(set(names)) < len(names):
        raise ValueError(f"expected autoencoders in folders of different names, got {names}")
    return {folder.name: load_autoencoder(folder).to(device) for folder in folders}


def _target(options: argparse.Namespace, work: Path) -> Target:
    weights = options.weights
    pipeline = load_pipeline(options.pipeline or weights / "pipeline", device=options.device)
    extractor = load_extractor(options.extractor or weights / "extractor", device=options.device)
    folder = options.decoder or weights / f"decoder_{options.modality}"
    decoder, about = load_decoder(folder, pipeline.vae)
    text = options.message or about["message"]
    message = message_from_string(text, bits=extractor.config.bits)
    records = [r for r in read_manifest(options.data, check_files=False)
               if r.modality == options.modality]  # fmt: skip
    own = [r for r in records if r.split == "train"][: options.own_images + HELD_OUT]
    if len(own) < options.own_images + HELD_OUT:
        raise ValueError(
            f"{options.own_images} images of the attacker and {HELD_OUT} more are needed, the "
            f"train split of {options.data} has {len(own)} of {options.modality}"
        )
    return Target(
        pipeline=pipeline,
        decoder=decoder,
        detector=Detector(extractor=extractor, message=message),
        latents=table_latents(
            pipeline,
            table_records(
                pipeline.tokenizer, records, modality=options.modality, count=options.images
            ),
            work / "samples", cache=options.cache,
        ),
        clean=own,
        seed=options.seed,
    )  # fmt: skip


if __name__ == "__main__":
    main()
