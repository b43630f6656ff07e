"""Record the cross-attention of a text-to-image pipeline while it runs.

Every cross-attention layer (`attn2` in diffusers) compares image positions, its queries, with the
tokens of the prompt, its keys. Forward hooks on the two projections see both, so the probabilities
can be recomputed beside the pipeline's own fused attention, which stays as it is: what the
pipeline produces is bit-identical with and without recording.

What is kept is one float32 sum per resolution, over heads, layers and U-Net calls: its size does
not grow with the number of steps. Sums are upsampled once, when `maps` is read; that equals
upsampling every map, because bilinear interpolation is linear.

The aggregation is that of DAAM (Tang et al., 2023) and OVAM (Marcos-Manchon et al., 2024), which
MedSign builds on (Kim et al., 2025, Sec. 2.2).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsign_lite.attention_layers import find_cross_attention, spatial_parent

VIEWS = ("layer", "head", "step")
ROWS = ("all", "second_half")
POSITIONS = 512  # at a time: their logits fit into a processor's cache
LANES = 16  # text is padded to a multiple: 77 tokens take a fifth longer than 80


@contextmanager
def record_attention(
    pipeline: object,
    *,
    conditional: str,
    tokens: Sequence[int] | None = None,
    layers: Sequence[str] = ("down", "up"),
    views: Sequence[str] = (),
) -> Iterator["AttentionRecord"]:
    """Sum the cross-attention of every U-Net call made inside the `with` block.

    Args:
        pipeline: a diffusers pipeline with a `unet`, or the U-Net itself.
        conditional: which rows of the U-Net's batch carry the prompt. `"second_half"` under
            classifier-free guidance (diffusers puts the unconditional rows first), `"all"`
            without guidance. There is no default: a wrong guess drops half of the images.
        tokens: positions in the padded prompt to keep, in the order wanted; all when `None`.
        layers: parts of the U-Net to sum over: "down", "mid", "up", or the beginning of a
            module's name such as "up_blocks.1".
        views: also keep sums "layer" by layer, "head" by head, or call by call ("step"), for
            teaching. Each costs its own memory; none changes `maps`.

    Yields:
        an `AttentionRecord`, readable inside the block and after it.

    Raises:
        ValueError: if there is no cross-attention in those layers, or an argument is not valid.
        RuntimeError: if the keys are projected together with the values (fused projections), so
            that nothing can be recorded.

    Example:
        >>> with record_attention(pipeline, conditional="second_half") as record:
        ...     image = pipeline("Small left pleural effusion.", guidance_scale=3.0)
        >>> record.maps.shape  # (images, tokens, height, width) of the latents
    """
    unet = getattr(pipeline, "unet", pipeline)
    record = AttentionRecord(
        unet, conditional=conditional, tokens=tokens, layers=layers, views=views
    )
    handles = record._attach(unet)
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


class AttentionRecord:
    """Running sums of attention; made by `record_attention`, not by hand.

    Attributes:
        calls: U-Net calls summed. Some samplers make more than one call per step: Heun makes 7
            for 4 steps.
        layers: names of the cross-attention modules summed over.
    """

    def __init__(self, unet, *, conditional, tokens, layers, views):
        if conditional not in ROWS:
            raise ValueError(f"conditional: expected one of {ROWS}, got {conditional!r}")
        if unknown := set(views) - set(VIEWS):
            raise ValueError(f"views: expected some of {VIEWS}, got {sorted(unknown)}")
        if tokens is not None:
            tokens = [int(token) for token in tokens]
            if not tokens or min(tokens) < 0 or len(set(tokens)) < len(tokens):
                raise ValueError(f"tokens: expected distinct positions of 0 or more, got {tokens}")
        self.layers = find_cross_attention(unet, layers)
        self.calls = 0
        self._conditional, self._tokens, self._views = conditional, tokens, tuple(views)
        self._sums: dict[tuple, Tensor] = {}  # kind and place -> (B, ..., h*w, T)
        self._grids: dict[str, tuple[int, int]] = {}  # layer -> (h, w) of its positions
        self._pending: dict[str, dict[str, Tensor]] = {}  # layer -> projections seen in this call
        self._captured: set[str] = set()  # layers recorded in this call
        self._latents: tuple[int, int, int] | None = None  # (rows, h, w) of the U-Net's input
        self._running = False

    @property
    def maps(self) -> Tensor:
        """(B, T, h, w) float32, non-negative: attention summed over heads, layers and calls.

        B counts conditional rows, T the kept tokens, (h, w) is the latents' size. Computed anew at
        each reading, so keep the result.
        """
        return self._upsampled_sum("total")

    @property
    def per_layer(self) -> dict[str, Tensor]:
        """Layer name -> (B, T, h, w) at that layer's own size, summed over heads and calls."""
        return {
            name: self._unflatten(value, self._grids[name]) for name, value in self._view("layer")
        }

    @property
    def per_head(self) -> dict[str, Tensor]:
        """Layer name -> (B, heads, T, h, w) at that layer's own size, summed over calls."""
        return {
            name: self._unflatten(value, self._grids[name]) for name, value in self._view("head")
        }

    @property
    def per_step(self) -> Tensor:
        """(calls, B, T, h, w) at the latents' size; the sum over calls is `maps`."""
        self._view("step")
        return torch.stack([self._upsampled_sum("step", call) for call in range(self.calls)])

    @property
    def bytes(self) -> int:
        """Bytes retained now: 4 x tokens x B x (sum of h x w over resolutions), plus any views."""
        return sum(value.numel() * value.element_size() for value in self._sums.values())

    def _upsampled_sum(self, *kind) -> Tensor:
        self._check_recorded()
        size = self._latents[1:]
        sums = [(key[-1], value) for key, value in self._sums.items() if key[:-1] == kind]
        return sum(
            F.interpolate(self._unflatten(value, grid), size, mode="bilinear", align_corners=False)
            for grid, value in sums
        )

    def _view(self, view: str) -> list[tuple[str, Tensor]]:
        if view not in self._views:
            raise ValueError(f"not kept: ask for it with record_attention(..., views=({view!r},))")
        self._check_recorded()
        return [(key[-1], value) for key, value in self._sums.items() if key[0] == view]

    def _check_recorded(self) -> None:
        if not self.calls:
            raise RuntimeError("no attention recorded: run the pipeline inside the `with` block")

    @staticmethod
    def _unflatten(value: Tensor, grid: tuple[int, int]) -> Tensor:
        return value.transpose(-1, -2).unflatten(-1, grid)  # (..., h*w, T) -> (..., T, h, w)

    def _attach(self, unet: nn.Module) -> list:
        """Register every hook; the caller removes them."""
        handles = [
            unet.register_forward_pre_hook(self._begin_call, with_kwargs=True),
            unet.register_forward_hook(self._end_call),
        ]
        for name in self.layers:
            attention = unet.get_submodule(name)
            spatial = unet.get_submodule(spatial_parent(name))

            def note_grid(module, args, kwargs, name=name):
                hidden_states = args[0] if args else kwargs["hidden_states"]
                self._grids[name] = tuple(hidden_states.shape[-2:])

            def note_mask(module, args, kwargs, name=name):
                self._pending[name] = {"mask": kwargs.get("attention_mask")}

            def note_query(module, args, output, name=name, attention=attention):
                self._note(name, attention, "query", output)

            def note_key(module, args, output, name=name, attention=attention):
                self._note(name, attention, "key", output)

            handles += [
                spatial.register_forward_pre_hook(note_grid, with_kwargs=True),
                attention.register_forward_pre_hook(note_mask, with_kwargs=True),
                attention.to_q.register_forward_hook(note_query),
                attention.to_k.register_forward_hook(note_key),
            ]
        return handles

    def _begin_call(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        sample = args[0] if args else kwargs["sample"]
        latents = (sample.shape[0], *sample.shape[-2:])
        if self._conditional == "second_half" and not self.calls:
            first, second = sample[: latents[0] // 2], sample[latents[0] // 2 :]
            if first.shape != second.shape or not torch.equal(first, second):
                raise ValueError(
                    'conditional="second_half" expects the same latents twice, as guidance makes '
                    f'them; the {latents[0]} rows are not that: use "all" without guidance'
                )
        if self._latents not in (None, latents):
            raise RuntimeError(
                f"one record holds one shape: it has (rows, height, width) {self._latents} and the "
                f"U-Net now gets {latents}; open a new `with record_attention(...)` block"
            )
        if self._running:
            raise RuntimeError(
                "an earlier call of the U-Net failed halfway, and part of it is in the sums; open "
                "a new `with record_attention(...)` block"
            )
        self._latents = latents
        self._pending, self._captured, self._running = {}, set(), True

    def _end_call(self, unet: nn.Module, args: tuple, output: object) -> None:
        self._running = False
        if missing := [name for name in self.layers if name not in self._captured]:
            raise RuntimeError(
                f"no attention recorded in {len(missing)} of {len(self.layers)} layers, first "
                f"{missing[0]}: `to_q` and `to_k` were not both called. With fused projections "
                "call unfuse_qkv_projections() first"
            )
        self.calls += 1

    def _note(self, name: str, attention: nn.Module, role: str, projected: Tensor) -> None:
        """Keep a projection until its partner is there, then add the probabilities."""
        if not self._running:  # a gradient checkpoint's second forward pass, already counted
            return
        pending = self._pending.setdefault(name, {"mask": None})
        pending[role] = projected.detach()
        if "query" in pending and "key" in pending:
            del self._pending[name]
            # Sums outlive the caller's mode: they are ordinary float32 tensors without gradients.
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                torch.autocast(projected.device.type, enabled=False),
            ):
                self._add(name, attention, **pending)
            self._captured.add(name)

    def _add(self, name: str, attention: nn.Module, query, key, mask) -> None:
        """Softmax over the text tokens, some positions at a time, into the running sums."""
        rows = slice(len(query) // 2 if self._conditional == "second_half" else 0, None)
        query = query[rows].unflatten(-1, (attention.heads, -1))  # (B, h*w, heads, D)
        key = key[rows].unflatten(-1, (attention.heads, -1))  # (B, text, heads, D)
        if attention.norm_q is not None:
            query = attention.norm_q(query)
        if attention.norm_k is not None:
            key = attention.norm_k(key)
        positions, text, grid = query.shape[1], key.shape[1], self._grids[name]
        query = query.transpose(1, 2)  # (B, heads, h*w, D)
        key = (key.float() * attention.scale).permute(0, 2, 3, 1)
        key = F.pad(key, (0, -text % LANES)).contiguous()
        if positions != grid[0] * grid[1]:
            raise RuntimeError(f"{name}: {positions} positions do not fill its input's {grid}")
        if self._tokens is not None and max(self._tokens) >= text:
            raise ValueError(f"tokens: position {max(self._tokens)} of a prompt of {text} tokens")
        if mask is not None:  # a bias (rows, 1, text) made by the U-Net, large where hidden
            mask = mask.expand(self._latents[0], 1, text)[rows].float()

        shape = (len(query), positions, text if self._tokens is None else len(self._tokens))
        keys = [("total", grid)]
        keys += [("layer", name)] if "layer" in self._views else []
        keys += [("step", self.calls, grid)] if "step" in self._views else []
        sums = [self._buffer(place, shape, query.device) for place in keys]
        heads = None
        if "head" in self._views:
            per_head = (shape[0], attention.heads, *shape[1:])
            heads = self._buffer(("head", name), per_head, query.device)
        kept = slice(text) if self._tokens is None else self._tokens
        for begin in range(0, positions, POSITIONS):
            some = slice(begin, begin + POSITIONS)
            logits = query[:, :, some].float() @ key  # (B, heads, some, padded text)
            logits[..., text:] = -torch.inf
            if mask is not None:
                logits[..., :text] += mask[:, None]
            # exp(s_j - logsumexp(s)) for every token at once; the sum is over all of the text.
            probabilities = logits.softmax(dim=-1)[..., kept]
            if heads is not None:
                heads[:, :, some] += probabilities
            over_heads = probabilities.sum(dim=1)
            for running in sums:
                running[:, some] += over_heads

    def _buffer(self, place: tuple, shape: tuple, device: torch.device) -> Tensor:
        if place not in self._sums:
            self._sums[place] = torch.zeros(shape, device=device)
        return self._sums[place]
