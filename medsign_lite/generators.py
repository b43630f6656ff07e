"""Text-to-image models from folders: the bundled one, or anybody's Stable Diffusion.

Everything that can be told from the configuration files is checked before a weight is read, which
for a real model is gigabytes. Nothing about a model is assumed that its folder says: text width,
heads, latent channels and scaling, image size, what the U-Net predicts, the length of a prompt.
"""

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

from medsign_lite.checkpoints import read_plain_tensors

BUNDLED = Path(__file__).parent / "weights" / "pipeline"
AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "half": torch.float16}


def load_pipeline(
    folder: str | Path = BUNDLED,
    *,
    unet: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention_slicing: bool = False,
    offload: bool = False,
) -> StableDiffusionPipeline:
    """Load any ``StableDiffusionPipeline`` folder from disk; by default the bundled model.

    Args:
        folder: the pipeline; nothing is downloaded.
        unet: folder of another U-Net to use in place of the pipeline's own, which may then lack
            one; or a folder that has such a folder named ``unet``.
        dtype: of the weights in memory; ``sampling_dtype`` chooses one.
        attention_slicing: compute attention one head and image at a time. It saves memory where
            torch has no fused attention for the device, and costs some where it has.
        offload: keep the text encoder and the U-Net in main memory while they do not work.

    Raises:
        FileNotFoundError: if the folder holds no ``model_index.json``, or a part is missing.
        ValueError: if the U-Net's latents or text width do not fit the other parts, a part is of
            a kind not known here, a configuration is not JSON, weights are a pickle of more than
            tensors, or there is no other device to offload from.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(
            f"{folder}: expected a folder in diffusers' format, got a file; convert a single "
            "checkpoint with diffusers' own script first"
        )
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"expected a diffusers pipeline, found no {folder}/model_index.json"
        )
    if offload and torch.device(device).type == "cpu":
        raise ValueError("offload: expected a device other than the CPU to take load from")
    unet_folder = _unet_folder(folder, unet)
    check_folder(folder, unet_folder)
    parts = {}
    if unet is not None:
        parts["unet"] = UNet2DConditionModel.from_pretrained(unet_folder, local_files_only=True)
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder,
        local_files_only=True,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        freeze(part)
    pipeline.text_encoder.float()  # diffusers' parts are, transformers keeps the file's precision
    # A tokenizer that was saved without its length would pad to 10^30 tokens.
    pipeline.tokenizer.model_max_length = min(
        pipeline.tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings
    )
    if attention_slicing:
        pipeline.enable_attention_slicing("max")
    if dtype != torch.float32:
        pipeline.to(dtype)
    return offload_parts(pipeline, device) if offload else pipeline.to(device)


def freeze(module: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients; returns the module."""
    return module.eval().requires_grad_(False)


def sampling_dtype(device: str | torch.device, precision: str = "auto") -> torch.dtype:
    """The weights' type for sampling; "auto" is half precision on CUDA, float32 elsewhere.

    Raises:
        ValueError: for an unknown precision.
    """
    if precision == "auto":
        precision = "half" if torch.device(device).type == "cuda" else "float32"
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be auto or one of {(*PRECISIONS,)}, got {precision!r}")
    return PRECISIONS[precision]


def offload_parts(
    pipeline: StableDiffusionPipeline, device: str | torch.device
) -> StableDiffusionPipeline:
    """Have the text encoder and the U-Net come to the device when they work, and leave it again.

    The autoencoder, much smaller, stays there: ``decode`` and ``encode`` call its halves directly.
    """
    pipeline.model_cpu_offload_seq = "text_encoder->unet"
    pipeline._exclude_from_cpu_offload = [*pipeline._exclude_from_cpu_offload, "vae"]
    pipeline.enable_model_cpu_offload(device=device)
    return pipeline


def check_folder(folder: Path, unet: Path) -> None:
    """Refuse a pipeline whose parts are missing, do not fit together or are not plain tensors.

    Args:
        folder: of the pipeline.
        unet: folder of its U-Net, inside or outside the pipeline's.

    Raises:
        FileNotFoundError, ValueError: as in ``load_pipeline``.
    """
    index = _read_json(folder / "model_index.json")
    models = {"unet": unet, "vae": folder / "vae", "text_encoder": folder / "text_encoder"}
    for name, part in models.items():
        if not (part / "config.json").is_file():
            raise FileNotFoundError(
                f"pipeline {folder}: the {name}'s {part}/config.json is missing"
            )
        if not _weights(part):
            raise FileNotFoundError(
                f"pipeline {folder}: the {name} has no weights in {part} (.safetensors or .bin; "
                "for a variant such as .fp16.safetensors drop that from the name)"
            )
    for name, file in (("tokenizer", "tokenizer_config"), ("scheduler", "scheduler_config")):
        if not (folder / name / f"{file}.json").is_file():
            raise FileNotFoundError(
                f"pipeline {folder}: the {name}'s {folder / name / file}.json is missing"
            )
    kind = (index.get("vae") or ["", "none"])[1]
    if kind not in AUTOENCODERS:
        raise ValueError(f"pipeline {folder}: expected a vae of {AUTOENCODERS}, got {kind}")
    check_fit(*(_read_json(part / "config.json") for part in models.values()))
    for part in models.values():
        for weights in _weights(part):
            if weights.suffix == ".bin":
                read_plain_tensors(weights, device="meta")


def check_fit(unet: dict, vae: dict, text_encoder: dict) -> None:
    """Whether a U-Net takes the latents and the text that the other parts make.

    Args:
        unet, vae, text_encoder: their configurations.

    Raises:
        ValueError: naming the two numbers that differ.
    """
    # Old files leave out what is diffusers' default.
    taken, made = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if taken != made:
        raise ValueError(f"the U-Net takes {taken} latent channels, the autoencoder makes {made}")
    widths = unet.get("cross_attention_dim", 1280)
    text = text_encoder.get("hidden_size", 512)
    for width in widths if isinstance(widths, list) else [widths]:  # or one for each block
        if width != text:
            raise ValueError(
                f"the U-Net's cross-attention takes text of width {width}, "
                f"the text encoder makes {text}"
            )


def _unet_folder(folder: Path, unet: str | Path | None) -> Path:
    if unet is None:
        return folder / "unet"
    inside = Path(unet) / "unet"
    return inside if (inside / "config.json").is_file() else Path(unet)


def _weights(part: Path) -> list[Path]:
    """What diffusers would read: safetensors if there are any, pickles otherwise; no variants."""
    names = [path for path in sorted(part.iterdir()) if "." not in path.stem]
    safe = [path for path in names if path.suffix == ".safetensors"]
    return safe or [path for path in names if path.suffix == ".bin"]


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
