"""How much memory sampling needs, said before a run starts instead of found out in its middle.

The networks are run once on torch's `meta` device, where tensors have shapes but no content, while
every tensor that comes and goes is counted. So the estimate holds for any model, size and attention
processor, takes a moment and needs no memory itself. Fused attention counts as its output, which is
all that it keeps; what libraries use beside tensors is left to `MARGIN`.
"""

import os
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medsign_lite.attention import LANES, POSITIONS
from medsign_lite.attention_layers import find_cross_attention, spatial_parent
from medsign_lite.latent_diffusion import LatentDecoder, image_size, scale_factor

MARGIN = 1.2  # convolutions' workspaces, fragments between tensors
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on the device that samples.

    Attributes:
        weights: of the networks, or with offloading of those that are there at the same time.
        loaded: those of the weights that are there already.
        activations: of the U-Net, of the decoder or of reading the maps, whichever needs more.
        maps: of the recorded attention, and of adding to it.
    """

    weights: int
    loaded: int
    activations: int
    maps: int

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.maps

    def __str__(self) -> str:
        parts = ("weights", "activations", "maps")
        sizes = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in parts)
        return f"{self.total / GIB:.2f} GiB ({sizes})"


def estimate_sampling(
    pipeline,
    *,
    batch: int,
    tokens: int = 0,
    guidance: float = 3.0,
    size: tuple[int, int] | None = None,
    decoded: int = 0,
) -> MemoryEstimate:
    """What sampling one batch needs.

    Args:
        pipeline: a `StableDiffusionPipeline`, its weights' type, attention processors and
            offloading as they will be.
        batch: images at a time.
        tokens: whose attention is recorded; 0 records none.
        guidance: above 1 the U-Net sees every image twice.
        size: (H, W) in pixels; by default the size the model was trained for.
        decoded: images that are decoded at a time afterwards, in float32 (with a copy of the
            decoder if it is of another type); 0 decodes none.
    """
    height, width = size or image_size(pipeline)
    factor = scale_factor(pipeline.vae)
    shape = (pipeline.unet.config.in_channels, height // factor, width // factor)
    rows = 2 * batch if guidance > 1 else batch
    unet = _without_content(pipeline.unet)
    unet.set_attn_processor(pipeline.unet.attn_processors)
    text = (pipeline.tokenizer.model_max_length, pipeline.text_encoder.config.hidden_size)
    grids = {}
    with _counting(unet) as live, _noting_grids(unet, grids):
        dtype = pipeline.unet.dtype
        words = torch.empty(rows, *text, device="meta", dtype=dtype)
        noisy = torch.empty(rows, *shape, device="meta", dtype=dtype)
        unet(noisy, torch.zeros(rows, device="meta"), encoder_hidden_states=words)
    # Maps are read when the U-Net is done: one resolution enlarged, the next one, and their sum.
    activations = max(live.peak, 3 * 4 * batch * tokens * shape[1] * shape[2])
    weights = _bytes(pipeline.vae)
    networks = [_bytes(pipeline.text_encoder), _bytes(pipeline.unet)]
    weights += max(networks) if getattr(pipeline, "_all_hooks", None) else sum(networks)
    if decoded:
        vae = _without_content(pipeline.vae, torch.float32)
        with _counting(vae) as live:
            latents = torch.empty(decoded, *shape, device="meta")
            LatentDecoder(vae)(latents)
        activations = max(activations, live.peak)
        if pipeline.vae.dtype != torch.float32:
            weights += _bytes(LatentDecoder(vae))
    device = pipeline._execution_device
    parts = (pipeline.vae, pipeline.text_encoder, pipeline.unet)
    loaded = sum(_bytes(part) for part in parts if part.device.type == device.type)
    return MemoryEstimate(
        weights=weights,
        loaded=min(loaded, weights),
        activations=activations,
        maps=_map_bytes(pipeline.unet, grids, batch, tokens, text[0]),
    )


def free_memory(device: str | torch.device) -> int | None:
    """Bytes that new tensors may take on a device; None where the system does not say.

    Main memory's are the system's, whatever a job scheduler or a container allows.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch keeps for later use is free to it.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(kilobytes) * 1024
    except (OSError, StopIteration):
        pass  # not Linux: all there is says at least what can never fit
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def check_memory(estimate: MemoryEstimate, device: str | torch.device) -> None:
    """Refuse to start what will not fit.

    Raises:
        MemoryError: saying what is needed and free, and what to change.
    """
    needed = (estimate.total - estimate.loaded) * MARGIN
    free = free_memory(device)
    if free is not None and needed > free:
        raise MemoryError(
            f"sampling needs {estimate}, of which {needed / GIB:.2f} GiB more than now with a "
            f"margin, and {device} has {free / GIB:.2f} GiB free: take a smaller batch, half "
            "precision, or offload parts to main memory"
        )


def _without_content(module: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    with torch.device("meta"):
        copy = type(module).from_config(module.config)
    copy = copy.eval().requires_grad_(False)
    # Not the class's own `to`, which warns of precision: here nothing is computed.
    return nn.Module.to(copy, dtype or module.dtype)


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in (*module.parameters(), *module.buffers()))


def _map_bytes(unet, grids: dict, batch: int, tokens: int, text: int) -> int:
    """The running sums (see `AttentionRecord.bytes`), and one layer's logits on their way there."""
    if not tokens:
        return 0
    heads = max(unet.get_submodule(name).heads for name in grids)
    largest = max(height * width for height, width in grids.values())
    positions = min(largest, POSITIONS)
    sums = sum(height * width for height, width in set(grids.values()))
    padded = text + -text % LANES
    return 4 * batch * (tokens * sums + 3 * heads * positions * padded)


@contextmanager
def _noting_grids(unet: nn.Module, grids: dict):
    """Note each cross-attention layer's (h, w); a network without any notes nothing."""
    try:
        names = find_cross_attention(unet)
    except ValueError:
        names = []

    def noting(name):
        return lambda module, args: grids.__setitem__(name, tuple(args[0].shape[-2:]))

    handles = [
        unet.get_submodule(spatial_parent(name)).register_forward_pre_hook(noting(name))
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _counting(module: nn.Module):
    with torch.no_grad(), _FusedAttention(), _LiveBytes(module) as live:
        yield live


class _FusedAttention(TorchFunctionMode):
    """Attention that makes its output alone, as fused kernels do and `meta` does not."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return function(*args, **(kwargs or {}))


class _LiveBytes(TorchDispatchMode):
    """Bytes of the tensors alive that are not the module's own, and the most at once."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        weights = (*module.parameters(), *module.buffers())
        self._known = {weight.untyped_storage()._cdata for weight in weights}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:  # a view, or computed in place
            return
        size = storage.nbytes()
        self._known.add(storage._cdata)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, storage._cdata, size)

    def _release(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size
