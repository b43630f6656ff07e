"""Where the trained parts of Table 1's rows lie, and the commands that train them.

MedSign's extractor and its decoder with the sharp map are shipped. All else is trained by the
commands below, in this order, into one folder BASELINES (build/baselines by default), where
`medsign_lite.tables.table1` finds it. MANIFEST is that of the phantoms, M a modality, WEIGHTS the
shipped folder; an interrupted command goes on when it is given again.

`recipes` returns them with the names put in. Stable Signature has two rows, both fine-tuned as
published: image and message loss alone, in a fixed ratio, nothing between decoder and extractor,
100 steps of 4 images. The published one fine-tunes the whole decoder, and gets an extractor that
saw no rotation, brightness or blur. It is of MedSign's kind, but without the turns that are built
into that: HiDDeN's own network learns the same from millions of images. The fair one reads with
MedSign's extractor, and has MedSign's message, image loss, blocks and optimiser. What attacks in
training alone bring, which are ours and not MedSign's, is for Table 2 to say. MedSign's literal map
is Eq. 1 as printed; its decoder goes on from one of the sharp map, for a fraction of its steps. The
recorded ones went on from the decoders that were shipped before, and the shipped ones from there.

The samples come with the maps that `medsign_lite.tables.ablations` asks for as well; where `make
weights` has run, build/weights/cache_M holds the same. For SSL Watermark in the features of a
ResNet-50 of DINO's, `--resnet50 FILE` takes the place of `--steps 3000` in its command.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from medsign_lite.attacks import STABLE_SIGNATURE_ATTACKS
from medsign_lite.baselines.backbone import load_backbone
from medsign_lite.baselines.localised_watermark import load_localised_watermark
from medsign_lite.baselines.ssl_watermark import SSLWatermark
from medsign_lite.baselines.watermark_methods import (
    WatermarkMethod,
    dct_dwt,
    of_decoder,
    ssl_watermark,
    wam_kind,
)
from medsign_lite.checkpoints import digest, read_config
from medsign_lite.decoder_recipe import (
    SAMPLES,
    STABLE_SIGNATURE_RATIO,
    STABLE_SIGNATURE_STEPS,
    recipe,
)
from medsign_lite.extractor import AnyExtractor, load_extractor
from medsign_lite.finetuning import PRESETS
from medsign_lite.latent_diffusion import Autoencoder, load_decoder
from medsign_lite.messages import message_from_string
from medsign_lite.published import table1

ROWS = (
    "dct-dwt", "ssl-watermark", "wam-kind", "stable-signature-published", "stable-signature",
    "medsign-literal", "medsign-sharp",
)  # fmt: skip
OWN = "medsign-sharp"  # the shipped decoder, which the others are compared with
TITLES = {
    "dct-dwt": "DCT-DWT",
    "ssl-watermark": "SSL Watermark",
    "wam-kind": "WAM kind",
    "stable-signature-published": "Stable Signature, extractor by its published transforms",
    "stable-signature": "Stable Signature, extractor of MedSign",
    "medsign-literal": "MedSign, literal map",
    "medsign-sharp": "MedSign, sharp map",
}
# Of SSIM in the image loss of the fair Stable Signature: MedSign's, for most of its steps.
STRUCTURE = {"chest": "60", "fundus": "50"}
LITERAL_STEPS = 1500  # some 25 minutes of one core
_AS_PUBLISHED = " ".join(STABLE_SIGNATURE_ATTACKS)
_FINETUNING = (
    "python -m medsign_lite.finetuning --modality {m} --pipeline {w}/pipeline "
    "--cache {b}/cache_{m} --message {message}"
)
_PLAIN = (
    "--total-variation 0 --preservation 0 --attack-strength 0 --reads 1 "
    f"--first-quality {STABLE_SIGNATURE_RATIO} --last-quality {STABLE_SIGNATURE_RATIO} "
    f"--steps {STABLE_SIGNATURE_STEPS}"
)
RECIPES = {  # by the folder that each one fills
    "ssl_watermark": "python -m medsign_lite.baselines.backbone_training --data MANIFEST "
    "--steps 3000",
    "wam_kind": "python -m medsign_lite.baselines.localised_training --data MANIFEST "
    "--limit 3000 --steps 700",
    "cache_{m}": "python -m medsign_lite.sample_cache --data MANIFEST --pipeline {w}/pipeline "
    f"--modality {{m}} --count {SAMPLES} --scale sharp "
    "--kinds sharp literal sharp_without_cas without_aas",
    "extractor_published": "python -m medsign_lite.pretraining --images MANIFEST --network upright "
    f"--attacks {_AS_PUBLISHED} --steps 4000",
    "stable_signature_published_{m}": f"{_FINETUNING} "
    f"--extractor {{b}}/extractor_published/extractor --batch-size 4 {_PLAIN}",
    "stable_signature_{m}": f"{_FINETUNING} --extractor {{w}}/extractor {{recipe}} "
    f"--structure {{structure}} {_PLAIN}",
    # The shipped decoder gone on with, as it was trained but for the map.
    "medsign_literal_{m}": f"{_FINETUNING} --kind literal --start {{w}}/decoder_{{m}} "
    f"--extractor {{w}}/extractor {{recipe}} --steps {LITERAL_STEPS}",
}


def recipes(modality: str, *, weights: str | Path, baselines: str | Path) -> dict[str, str]:
    """The commands that train what is not shipped, in order, by the folder each one fills.

    Decoders get the message of the shipped one.
    """
    if modality not in PRESETS:
        raise ValueError(f"expected a modality among {', '.join(PRESETS)}, got {modality!r}")
    shipped = read_config(Path(weights) / f"decoder_{modality}" / "config.json")
    names = {"m": modality, "w": weights, "b": baselines, "message": shipped["message"]}
    names |= {"recipe": " ".join(recipe(modality)), "structure": STRUCTURE[modality]}
    return {
        folder.format(**names): f"{command} --out {{b}}/{folder}".format(**names)
        for folder, command in RECIPES.items()
    }


def made(modality: str) -> tuple[str, ...]:
    """What the recipes leave in BASELINES for the table, seen from there."""
    parts = {"ssl_watermark": "backbone", "wam_kind": "watermark",
             "extractor_published": "extractor"}  # fmt: skip
    folders = (folder.format(m=modality) for folder in RECIPES if not folder.startswith("cache"))
    return tuple(f"{folder}/{parts.get(folder, 'decoder')}" for folder in folders)


def check_reader(name: str, about: Mapping, reader: AnyExtractor) -> None:
    """Refuse a decoder that was trained with another extractor than the one that is to read it.

    Args:
        name: of the row and the decoder, for the error.
        about: the decoder's configuration; one that does not say is taken.

    Raises:
        ValueError: naming both extractors by their digests.
    """
    trained_with, own = about.get("extractor"), digest(reader)
    if trained_with not in (None, own):
        raise ValueError(
            f"{name} was trained with the extractor {trained_with}, and is to be read with {own}: "
            "train it again, or name the extractor's own --weights"
        )


def load_method(
    key: str,
    *,
    modality: str,
    vae: Autoencoder,
    weights: Path,
    baselines: Path,
    device: str = "cpu",
) -> WatermarkMethod:
    """The method of a row.

    Args:
        key: one of `ROWS`.
        modality: "chest" or "fundus".
        vae: of the pipeline that made the images.
        weights: folder with extractor and decoder_MODALITY.
        baselines: folder with what the commands of this module train.

    Raises:
        ValueError: for another key, or weights that are not of this pipeline.
        FileNotFoundError: if weights are missing, naming the command that trains them.
    """

    def found(folder: str, part: str) -> Path:
        path = baselines / folder / part
        if not path.is_dir():
            command = recipes(modality, weights=weights, baselines=baselines)[folder]
            raise FileNotFoundError(
                f"row {key}: no weights at {path}; train them with\n    {command}"
            )
        return path

    def decoder(path: Path, extractor: Path) -> WatermarkMethod:
        network, about = load_decoder(path, vae)
        reader = load_extractor(extractor, device=device)
        check_reader(f"row {key}: {path}", about, reader)
        message = message_from_string(about["message"], bits=reader.config.bits)
        return of_decoder(key, TITLES[key], network.to(device), message, reader)

    printed = {row["method"].split(" (")[0]: row["psnr"] for row in table1(modality)}
    shipped = weights / "extractor"
    build: dict[str, Callable[[], WatermarkMethod]] = {
        "dct-dwt": lambda: dct_dwt(psnr=printed["DCT-DWT"]),
        "ssl-watermark": lambda: ssl_watermark(SSLWatermark(
            backbone=load_backbone(found("ssl_watermark", "backbone"), device=device),
            psnr=printed["SSL Watermark"],
        )),
        "wam-kind": lambda: wam_kind(
            load_localised_watermark(found("wam_kind", "watermark"), device=device),
            psnr=printed["WAM"],
        ),
        "stable-signature-published": lambda: decoder(
            found(f"stable_signature_published_{modality}", "decoder"),
            found("extractor_published", "extractor"),
        ),
        "stable-signature": lambda: decoder(
            found(f"stable_signature_{modality}", "decoder"), shipped
        ),
        "medsign-literal": lambda: decoder(
            found(f"medsign_literal_{modality}", "decoder"), shipped
        ),
        "medsign-sharp": lambda: decoder(weights / f"decoder_{modality}", shipped),
    }  # fmt: skip
    if key not in build:
        raise ValueError(f"expected a row among {', '.join(ROWS)}, got {key!r}")
    return build[key]()
