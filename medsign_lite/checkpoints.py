"""Checkpoints: weights as safetensors beside their configuration as JSON, loaded strictly.

A checkpoint is a folder with `model.safetensors` and `config.json`; the configuration names its
`kind` ("extractor", "decoder", ...). A pickle can run code when it is opened, so weights are never
read from one.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from medsign_lite.files import whole_file

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def save_checkpoint(
    folder: str | Path,
    state: dict[str, Tensor],
    config: dict,
    *,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write weights and configuration; neither takes its name before both are on the disk.

    Args:
        folder: created if needed.
        state: a `state_dict()`.
        config: whatever JSON can hold; must name its "kind".
        dtype: store floating-point weights as this, for example torch.float16; None keeps them.

    Returns:
        The folder.

    Raises:
        ValueError: if the configuration names no kind, or a weight is not finite or does not fit
            into `dtype`.
        OSError: if there is no space left (see `whole_file`).
    """
    folder = Path(folder)
    if not isinstance(config.get("kind"), str):
        raise ValueError(f"expected config['kind'] to name the kind of model, got {config}")
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    weights = to_safetensors({name: _stored(name, w, dtype) for name, w in state.items()})
    with whole_file(folder / CONFIG) as config_file, whole_file(folder / WEIGHTS) as weights_file:
        config_file.write(text.encode())
        weights_file.write(weights)
    return folder


def read_plain_tensors(path: str | Path, *, device: str = "cpu") -> dict[str, Tensor]:
    """The state dict in somebody's torch file, read without running any of it.

    Args:
        device: "meta" looks at the file without holding its weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds anything but tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises half a dozen kinds
        raise ValueError(
            f"{path}: expected plain tensors, got a file that cannot be read "
            f"safely; ask for the weights as safetensors ({str(error).split(chr(10))[0]})"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected plain tensors, got a "
                         f"{type(state).__name__}")  # fmt: skip
    if strangers := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(
            f"{path}: expected plain tensors, got also {', '.join(strangers[:3])}: "
            "a training checkpoint, which holds the weights among them?"
        )
    return state


def _stored(name: str, weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    weight = weight.detach()
    target = dtype if dtype is not None and weight.is_floating_point() else weight.dtype
    stored = weight.to("cpu", target, copy=True).contiguous()
    if not weight.isfinite().all():
        raise ValueError(f"weight {name!r} is not finite: nothing was saved")
    if not stored.isfinite().all():
        raise ValueError(f"weight {name!r} reaches {weight.abs().max():g}, too large for {dtype}")
    return stored


def load_checkpoint(
    folder: str | Path, *, kind: str, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict]:
    """Read weights and configuration, and refuse what is not exactly that.

    Args:
        folder: written by `save_checkpoint`.
        kind: the kind of model expected.
        device: where the weights go.

    Returns:
        (state, config); half-precision weights come back as float32.

    Raises:
        FileNotFoundError: if the folder or one of its two files is missing.
        ValueError: if a file is empty, truncated, a pickle, not JSON, or of another kind.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"checkpoint folder {folder} does not exist")
    if not folder.is_dir():
        raise ValueError(
            f"checkpoint {folder}: expected a folder with {WEIGHTS} and {CONFIG}, got a file"
        )
    weights_path = folder / WEIGHTS
    if not weights_path.is_file():
        pickles = sorted(f.name for f in folder.iterdir() if f.suffix in _PICKLE_ENDINGS)
        if pickles:
            raise ValueError(
                f"checkpoint {folder}: expected {WEIGHTS}, got {pickles[0]}, a pickle, which may "
                "run code when opened; convert it to safetensors first"
            )
        raise FileNotFoundError(f"checkpoint {folder}: {WEIGHTS} is missing")
    config = read_config(folder / CONFIG)
    if config.get("kind") != kind:
        raise ValueError(
            f"checkpoint {folder}: expected a model of kind {kind!r}, got {config.get('kind')!r}"
        )
    state = _read_weights(weights_path)
    return {name: _as_single(weight).to(device) for name, weight in state.items()}, config


def read_config(path: Path) -> dict:
    """A checkpoint's configuration alone.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is not a JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path.parent}: {path.name} is missing")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        raise ValueError(
            f"{path}: expected JSON, got {path.stat().st_size} bytes that are not: {error}"
        ) from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    data = path.read_bytes()
    if not data:
        raise ValueError(f"{path}: expected safetensors, got an empty file (0 bytes)")
    if data.startswith(_PICKLE_STARTS) and data[8:9] != b"{":  # a header of 640 bytes looks alike
        raise ValueError(
            f"{path}: expected safetensors, got a pickle (a PyTorch .bin or .pt renamed?), which "
            "may run code when opened"
        )
    try:
        return load_safetensors(data)
    except SafetensorError as error:
        raise ValueError(
            f"{path}: expected {_size_expected(data)}, got {len(data)} bytes; the file is "
            f"truncated or damaged ({error})"
        ) from error


def _size_expected(data: bytes) -> str:
    """The size in bytes that the safetensors header promises, in words."""
    header_size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + header_size])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        return f"{8 + header_size + max(ends, default=0)} bytes of safetensors"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "safetensors"


def _as_single(weight: Tensor) -> Tensor:
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


def load_strictly(module: nn.Module, state: dict[str, Tensor], *, name: str) -> None:
    """Load a state dict where every key and every shape must agree.

    A state dict loaded loosely gives a network that runs and reads 50 % of the bits.

    Args:
        module: changed in place.
        state: the weights.
        name: what the error shall call the module.

    Raises:
        ValueError: naming the first missing, unexpected and mis-shaped keys.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key}: expected {tuple(own[key].shape)}, got {tuple(state[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    problems = [
        f"{len(keys)} {what} ({'; '.join(keys[:3])}{'; ...' if len(keys) > 3 else ''})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if keys
    ]
    if problems:
        raise ValueError(
            f"{name}: the weights are of another architecture; keys " + ", ".join(problems)
        )
    module.load_state_dict(state, strict=True)


def digest(*sources: nn.Module | Sequence[Tensor]) -> str:
    """Names the contents of tensors, or of networks by their weights, in twelve characters."""
    hashed = hashlib.sha256()
    for source in sources:
        tensors = source.state_dict().values() if isinstance(source, nn.Module) else source
        for tensor in tensors:
            for rows in tensor.detach().split(256) if tensor.ndim else (tensor.detach(),):
                hashed.update(rows.cpu().double().numpy().tobytes())  # a cache may be larger
    return hashed.hexdigest()[:12]


def weights_fingerprint(folder: str | Path, parts: Sequence[str] | None = None) -> str:
    """Names the contents of all safetensors below a folder, by which a result says what it is of.

    Args:
        folder: of weights, such as the shipped ones.
        parts: its sub-folders that count, for a result of some of them; default all.

    Returns:
        12 hexadecimal digits; the same for the same files, wherever the folder is.

    Raises:
        FileNotFoundError: if the folder, or one of its parts, holds no safetensors.
    """
    folder, hashed = Path(folder), hashlib.sha256()
    for part in [folder] if parts is None else [folder / name for name in parts]:
        paths = sorted(part.rglob("*.safetensors"))
        if not paths:
            raise FileNotFoundError(f"{part} holds no weights (*.safetensors)")
        for path in paths:
            hashed.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return hashed.hexdigest()[:12]
