"""How much work a run does: four presets of the sizes that the notebooks need.

A profile is a frozen dataclass and a preset is a function that returns one, so a reader sees every
number in one place and a result can be saved with the numbers it came from.
"""

import dataclasses
from dataclasses import dataclass
from types import UnionType
from typing import Any, get_type_hints

PATHS = ("pipeline", "data", "autoencoder", "judge")  # parameters; the last may be a name as well
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The sizes of one run. Counts of images are per modality unless said otherwise.

    Phantoms:
        training_images: phantoms, both modalities together, that are made to train on.
        image_size: side of the images in pixels.
    Text to image (notebooks 01 to 03):
        autoencoder_steps, denoiser_steps: optimiser steps of the autoencoder and of the U-Net.
        prompts: prompts that are sampled to look at attention and localisation.
        sampling_steps: denoising steps of one image.
        guidance: classifier-free guidance scale.
    Extractor (notebook 04):
        extractor_steps, extractor_batch: optimiser steps from nothing, and images a step.
        whitening_images: unmarked images from which the whitening is computed.
    Decoder (notebook 05):
        decoder_images: cached latents, original outputs and maps to fine-tune on.
        decoder_steps, decoder_batch: optimiser steps, and images a step.
        decoder_learning_rate: AdamW's learning rate (the paper: 5e-4).
    Evaluation (notebook 06):
        evaluation_images: generated images that are watermarked, attacked and scored.
        unmarked_images: unmarked phantoms for the empirical false-positive rate.
        resamples: bootstrap resamples behind each interval.
    Run:
        from_nothing: True: go on with what this run has trained; False: train briefly to show the
            curve, then go on with the shipped weights.
        own_pipeline: the profile needs the user's `pipeline` and `data`.
        disk_megabytes: free space that the run folder must offer before anything starts.
    """

    name: str
    training_images: int
    image_size: int
    autoencoder_steps: int
    denoiser_steps: int
    prompts: int
    sampling_steps: int
    guidance: float
    extractor_steps: int
    extractor_batch: int
    whitening_images: int
    decoder_images: int
    decoder_steps: int
    decoder_batch: int
    decoder_learning_rate: float
    evaluation_images: int
    unmarked_images: int
    resamples: int
    from_nothing: bool
    own_pipeline: bool
    disk_megabytes: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type not in (int, float) or isinstance(value, bool):
                continue
            least = 1 if field.name in _AT_LEAST_ONE else 0
            if not value >= least:
                raise ValueError(f"{field.name} must be at least {least}, got {value}")


_AT_LEAST_ONE = {
    "training_images", "image_size", "prompts", "sampling_steps", "extractor_batch",
    "whitening_images", "decoder_images", "decoder_batch", "evaluation_images",
    "unmarked_images", "resamples",
}  # fmt: skip


def smoke() -> Profile:
    """Every cell runs, nothing is learnt: all notebooks in four minutes on two cores."""
    return Profile(
        name="smoke",
        training_images=64, image_size=128,
        autoencoder_steps=3, denoiser_steps=3, prompts=2, sampling_steps=6, guidance=3.0,
        extractor_steps=8, extractor_batch=8, whitening_images=128,
        decoder_images=8, decoder_steps=4, decoder_batch=2, decoder_learning_rate=5e-4,
        evaluation_images=4, unmarked_images=128, resamples=200,
        from_nothing=False, own_pipeline=False, disk_megabytes=200,
    )  # fmt: skip


def class_profile() -> Profile:
    """For a lesson: short training to see the curve, then the shipped weights; 15 minutes."""
    return Profile(
        name="class",
        training_images=512, image_size=128,
        autoencoder_steps=40, denoiser_steps=40, prompts=8, sampling_steps=25, guidance=3.0,
        extractor_steps=200, extractor_batch=64, whitening_images=512,
        decoder_images=32, decoder_steps=60, decoder_batch=4, decoder_learning_rate=5e-4,
        evaluation_images=24, unmarked_images=1000, resamples=1000,
        from_nothing=False, own_pipeline=False, disk_megabytes=500,
    )  # fmt: skip


def full() -> Profile:
    """Everything from nothing, for one GPU."""
    return Profile(
        name="full",
        training_images=20_000, image_size=128,
        autoencoder_steps=8000, denoiser_steps=20_000, prompts=64, sampling_steps=25, guidance=3.0,
        extractor_steps=6000, extractor_batch=64, whitening_images=4096,
        decoder_images=2000, decoder_steps=3000, decoder_batch=8, decoder_learning_rate=5e-4,
        evaluation_images=500, unmarked_images=10_000, resamples=1000,
        from_nothing=True, own_pipeline=False, disk_megabytes=8000,
    )  # fmt: skip


def paper() -> Profile:
    """The paper's hyper-parameters, for the user's own checkpoint (512 px) and reports.

    6,000 latents for two epochs of batches of four is 3,000 steps (the paper gives no batch size);
    1,903 test reports. The generator is the user's, so nothing of it is trained.
    """
    return Profile(
        name="paper",
        training_images=6000, image_size=512,
        autoencoder_steps=0, denoiser_steps=0, prompts=64, sampling_steps=75, guidance=4.0,
        extractor_steps=100_000, extractor_batch=64, whitening_images=10_000,
        decoder_images=6000, decoder_steps=3000, decoder_batch=4, decoder_learning_rate=5e-4,
        evaluation_images=1903, unmarked_images=10_000, resamples=1000,
        from_nothing=True, own_pipeline=True, disk_megabytes=60_000,
    )  # fmt: skip


PROFILES = {"smoke": smoke, "class": class_profile, "full": full, "paper": paper}


def profile(name: str, **overrides: object) -> Profile:
    """The preset of that name, with single sizes replaced.

    Args:
        name: "smoke", "class", "full" or "paper".
        overrides: fields of `Profile`; None and "" mean the preset's own value. Strings, as
            papermill's `-y` and `-r` hand them over, are converted to the field's type.

    Raises:
        ValueError: for an unknown profile or field (the accepted ones are listed), or a value of
            another type.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: expected one of {', '.join(PROFILES)}")
    types = {key: kind for key, kind in get_type_hints(Profile).items() if key != "name"}
    unknown = sorted(set(overrides) - set(types))
    if unknown:
        raise ValueError(f"unknown parameter {', '.join(unknown)}: accepted are {', '.join(types)}")
    given = {key: value for key, value in overrides.items() if value is not None and value != ""}
    typed = {key: coerce(key, value, types[key]) for key, value in given.items()}
    return dataclasses.replace(PROFILES[name](), **typed)


def coerce(name: str, value: object, kind: type | UnionType) -> Any:
    """The value as `kind` (bool, int, float or str), or an error that names the parameter.

    The only place where a parameter's type is converted: "3" and 3.0 are the int 3, "1e-4" is a
    float, "true" is True; 2.5 is not an int, and True is not a number.
    """
    text = value.strip() if isinstance(value, str) else value
    try:
        if kind is bool:
            word = str(text).lower()
            if word in _TRUE | _FALSE:
                return word in _TRUE
        elif kind is str and isinstance(value, str | int | float):
            return str(value)
        elif kind is float and not isinstance(text, bool):
            return float(text)
        elif kind is int and not isinstance(text, bool):
            number = int(text) if isinstance(text, str) and text.lstrip("+-").isdigit() else text
            if float(number) == int(float(number)):
                return int(float(number)) if not isinstance(number, int) else number
    except (TypeError, ValueError, OverflowError):
        pass
    expected = getattr(kind, "__name__", str(kind))
    raise ValueError(f"parameter {name} must be of type {expected}, got {value!r}")
