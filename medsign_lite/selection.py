"""Which token's map to trust, and how to turn it into a protecting one: CAS and AAS.

Density-clustering attention selection (CAS) and adaptive attention scaling (AAS) are the two steps
of MedSign (Kim et al., 2025, Sec. 2.2) between recorded attention and the pathology localisation
map. The paper leaves open what its clustering sees, and its Eq. 1 barely sharpens: what is done
here instead, and what is done literally, is said at `select_token` and at `scale_attention`.
"""

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from sklearn.cluster import DBSCAN
from torch import Tensor

GAINS = {"literal": 1.0, "sharp": 20.0, "hard": None, None: None}  # presets of scale_attention
EPS = {"value": 0.5, "grid": 1.5}  # of DBSCAN, by the features of select_token
SMALL_MAPS = {"side": 64, "quantile": 0.9}  # for select_token on latents of 16 x 16


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """One row of the table that CAS decides on.

    Attributes:
        token: position in the padded prompt.
        clusters: DBSCAN clusters of the map; fewer is better, but 0 (nothing dense) is worst.
        noise: share of the clustered pixels that belong to no cluster, in [0, 1].
        spread: root mean square distance of those pixels from their centre, in map heights and
            widths; about 0.41 for a whole image.
        constant: the map hardly varies, so it was rejected.
        chosen: CAS took this token.
    """

    token: int
    clusters: int
    noise: float
    spread: float
    constant: bool
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What CAS chose: `map` (h, w) of the token `scores[index]`, and every token's score."""

    index: int
    map: Tensor
    scores: tuple[TokenScore, ...]

    def rows(self) -> list[dict]:
        """The score table as dictionaries, for `pandas.DataFrame`."""
        return [asdict(score) for score in self.scores]


def select_token(
    maps: Tensor,
    tokens: Sequence[int],
    *,
    features: str = "value",
    eps: float | None = None,
    min_samples: int = 5,
    side: int | None = None,
    quantile: float = 0.7,
    variation: float = 1e-3,
) -> Selection:
    """Density-clustering attention selection (CAS): the token whose map is most compact.

    The paper counts the clusters of each token's map with "DBSCAN with default settings" and keeps
    the token with fewest. It does not say what is clustered, which decides everything: with
    scikit-learn's defaults, integer pixel coordinates give 0 clusters for every map, coordinates in
    [0, 1] give 1. Here the pixels above the 0.7 quantile are clustered. Ties break by the share of
    noise, then by spread, then by order.

    With `features="value"` a pixel's neighbours come closer as the map gets larger. The defaults
    suit the 64 x 64 latents of Stable Diffusion; a smooth spot on 16 x 16 has too few neighbours
    and counts as 0 clusters. `**SMALL_MAPS` or `features="grid"` is the remedy for small maps.

    Args:
        maps: (T, h, w) one non-negative map per token, at latent resolution.
        tokens: T positions of those tokens, for the table.
        features: `"value"` for (x, y, attention), each z-scored, with eps 0.5; `"grid"` for pixel
            coordinates with eps 1.5, so that clusters are connected regions.
        eps, min_samples: of DBSCAN; `eps=None` takes the value that goes with `features`.
        side: upsample maps whose shorter side is less than this before clustering; `None` never.
        quantile: pixels above this quantile of their map are clustered.
        variation: a map whose standard deviation is at most this share of its mean is rejected.

    Raises:
        ValueError: if shapes or arguments do not fit, a map is not finite, or all are rejected.
    """
    check_cas(features=features, min_samples=min_samples, quantile=quantile, eps=eps, side=side)
    tokens = [int(token) for token in tokens]
    if maps.ndim != 3 or len(maps) != len(tokens) or not tokens:
        raise ValueError(
            f"expected maps (T, h, w), T tokens; got {tuple(maps.shape)}, {len(tokens)}"
        )
    if not maps.isfinite().all():
        raise ValueError(f"maps of the tokens {tokens}: expected finite numbers, got inf or nan")
    clustering = DBSCAN(eps=EPS[features] if eps is None else eps, min_samples=min_samples)
    clustered = maps.detach().double().cpu()
    if side is not None and min(maps.shape[-2:]) < side:
        clustered = F.interpolate(
            clustered[None], scale_factor=side / min(maps.shape[-2:]), mode="bilinear"
        )[0]
    scores = []
    for token, one in zip(tokens, clustered, strict=True):
        constant = bool(one.std(correction=0) <= variation * one.mean().abs())
        threshold = one.quantile(quantile)
        above = one > threshold
        rows, columns = (above if above.any() else one >= threshold).nonzero(as_tuple=True)
        places = torch.stack([rows, columns], dim=1).double()  # (N, 2)
        points = places
        if features == "value":
            points = torch.cat([places, one[rows, columns, None]], dim=1)  # (N, 3)
            deviation = points.std(dim=0, correction=0)
            points = (points - points.mean(dim=0)) / deviation.where(deviation > 0, 1.0)
        labels = clustering.fit_predict(points.numpy())
        relative = (places - places.mean(dim=0)) / torch.tensor(one.shape)
        scores.append(
            TokenScore(
                token=token,
                clusters=int(labels.max()) + 1,
                noise=float((labels < 0).mean()),
                spread=float(relative.square().sum(dim=1).mean().sqrt()),
                constant=constant,
            )
        )

    def badness(index: int) -> tuple:
        score = scores[index]
        return score.constant, score.clusters == 0, score.clusters, score.noise, score.spread, index

    best = min(range(len(scores)), key=badness)
    if scores[best].constant:
        raise ValueError(f"every map of the tokens {tokens} is nearly constant: nothing to select")
    scores[best] = replace(scores[best], chosen=True)
    return Selection(index=best, map=maps[best], scores=tuple(scores))


def check_cas(**options) -> None:
    """Refuse keyword arguments that `select_token` would refuse, before there are any maps.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    parameters = inspect.signature(select_token).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    if unknown := set(options) - set(known):
        raise ValueError(f"CAS: expected some of {tuple(known)}, got {sorted(unknown)}")
    options = known | options
    if options["features"] not in EPS:
        raise ValueError(f"features: expected one of {tuple(EPS)}, got {options['features']!r}")
    if not 0 <= options["quantile"] <= 1:
        raise ValueError(f"quantile: expected a number in [0, 1], got {options['quantile']}")
    for name in ("eps", "min_samples", "side"):
        if options[name] is not None and not options[name] > 0:
            raise ValueError(f"{name}: expected a positive number, got {options[name]}")


def average_tokens(maps: Tensor) -> Tensor:
    """(..., T, h, w) -> (..., h, w): the mean over a word's tokens; the paper's "without CAS"."""
    if maps.ndim < 3:
        raise ValueError(f"expected maps (..., T, h, w), got {tuple(maps.shape)}")
    return maps.mean(dim=-3)


def scale_attention(
    maps: Tensor,
    *,
    preset: str | None = "literal",
    quantile: float = 0.7,
    gain: float | None = None,
) -> Tensor:
    """Adaptive attention scaling (AAS), Eq. 1 of the paper, map by map.

    A map is z-scored, passed through a sigmoid and stretched to [0, 1]; tau is the 0.7 quantile of
    the result A. Then, with `preset`:

    - `"literal"`: sigmoid(A - tau), as printed. Because A - tau spans exactly 1, values span less
      than a quarter: about [0.34, 0.59] for a broad map, [0.50, 0.73] for a compact one. It shifts
      and compresses, and protects the background more than half as much as the pathology.
    - `"sharp"`: sigmoid(gain (A - tau)) with gain 20, stretched to [0, 1].
    - `"hard"`: 1 where A > tau, else 0: the top 30 % of the pixels.
    - `None`: the map stretched to [0, 1] and nothing else; the paper's "without AAS".

    Args:
        maps: (..., H, W) attention, any scale.
        preset: one of the above.
        quantile: of tau, in [0, 1].
        gain: replaces the gain of `"literal"` (1) or `"sharp"` (20).

    Returns:
        (..., H, W) in [0, 1], each map by its own statistics.

    Raises:
        ValueError: for an unknown preset, a gain where none is used, or a constant map.
    """
    if preset not in GAINS:
        raise ValueError(f"preset: expected one of {tuple(GAINS)}, got {preset!r}")
    if gain is not None and GAINS[preset] is None:
        raise ValueError(f"gain={gain}: preset {preset!r} has no gain; use 'literal' or 'sharp'")
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile: expected a number in [0, 1], got {quantile}")
    maps = maps.float()
    if preset is None:
        return _stretch(maps)
    deviation = maps.std(dim=(-2, -1), correction=0, keepdim=True)
    mean = maps.mean(dim=(-2, -1), keepdim=True)
    refined = _stretch(torch.sigmoid((maps - mean) / deviation.clamp_min(1e-30)))
    tau = refined.flatten(-2).quantile(quantile, dim=-1)[..., None, None]
    if preset == "hard":
        return (refined > tau).float()
    scaled = torch.sigmoid((GAINS[preset] if gain is None else gain) * (refined - tau))
    return _stretch(scaled) if preset == "sharp" else scaled


def _stretch(maps: Tensor) -> Tensor:
    """Minimum to 0 and maximum to 1, map by map."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    if not (high > low).all():
        raise ValueError("a map is constant (or not a number): it has no structure to scale")
    return (maps - low) / (high - low)
