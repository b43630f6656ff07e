"""TorchXRayVision's classifiers (Cohen et al., MIDL 2022), the judges of the paper's Table 2.

Optional: it needs torchvision, which needs a torch of the same build, and it downloads its weights
itself. It wants one channel from -1024 to 1024 in a square of its own size, and its answers are
probabilities already, calibrated so that .5 is the operating point: a second sigmoid would squeeze
them all between .5 and .73, and every change of a probability with them.
"""

import importlib
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from medsign_lite.images import check_image, resize
from medsign_lite.judges.judge_networks import FindingClassifier, load_classifier
from medsign_lite.latent_diffusion import BUNDLED

RANGE = 1024.0  # its images reach from minus this to this


class XRayVisionClassifier(nn.Module):
    """One of its networks behind the interface of our `FindingClassifier`.

    Args:
        network: (B, 1, size, size) in [-1024, 1024] to probabilities (B, F); its `pathologies`
            name them, an empty name stands for one that it was not trained for.
        size: side of the square that it reads, in pixels.
    """

    def __init__(self, network: nn.Module, *, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.columns = {name.lower(): column
                        for column, name in enumerate(network.pathologies) if name}  # fmt: skip

    @torch.no_grad()
    def probability(self, image: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """Probability of presence of the named findings (default: all that it knows).

        Args:
            image: (B, 3, H, W) in [0, 1]; the middle square of it is looked at.
            names: of findings in any case, such as "pneumonia" or "Effusion".

        Returns:
            (B, names) in [0, 1].

        Raises:
            ValueError: if it was not trained for one of the names.
        """
        check_image(image, in_range=False)
        names = list(self.columns) if names is None else [name.lower() for name in names]
        if unknown := [name for name in names if name not in self.columns]:
            known = ", ".join(sorted(self.columns))
            raise ValueError(f"this classifier does not know {', '.join(unknown)}, but {known}")
        side = min(image.shape[-2:])
        top, left = ((length - side) // 2 for length in image.shape[-2:])
        square = image[..., top : top + side, left : left + side]
        grey = resize(square, (self.size, self.size)).mean(dim=1, keepdim=True).clamp(0, 1)
        answers = self.network((2 * grey - 1) * RANGE)
        return answers[:, [self.columns[name] for name in names]]


def load_xrayvision(
    weights: str = "densenet121-res224-all", *, device: str | torch.device = "cpu"
) -> XRayVisionClassifier:
    """Load a classifier of TorchXRayVision by its name, frozen, in evaluation mode.

    The package downloads its own files and unpickles them, which can run whatever is in them: they
    have to be trusted, unlike all else that is loaded here.

    Args:
        weights: "densenet121-res224-..." or "resnet50-res512-all"; downloaded on first use.

    Raises:
        ImportError: if torchxrayvision or what it needs is missing or too old, saying what to
            install.
        ValueError: for a name of neither kind.
    """
    found = re.fullmatch(r"(densenet121|resnet50)-res(\d+)-\w+", weights)
    if not found:
        raise ValueError(
            f"weights: expected densenet121-res224-NAME or resnet50-res512-all, got {weights!r}"
        )
    try:
        models = importlib.import_module("torchxrayvision").models
    except (ImportError, RuntimeError) as error:  # torchvision of another build: RuntimeError
        raise ImportError(
            "TorchXRayVision cannot be imported. Install it with a torchvision made for the torch "
            f"that is here, {torch.__version__}: pip install torchxrayvision torchvision ({error})"
        ) from error
    kind = models.DenseNet if found[1] == "densenet121" else models.ResNet
    try:
        network = kind(weights=weights)
    except pickle.UnpicklingError as error:
        raise ImportError(
            "this TorchXRayVision cannot read its weights with the torch that is here, "
            f"{torch.__version__}: install a newer one ({str(error).splitlines()[0]})"
        ) from error
    classifier = XRayVisionClassifier(network, size=int(found[2]))
    return classifier.to(device).eval().requires_grad_(False)


def open_classifier(
    name: str | Path = "", *, device: str | torch.device = "cpu"
) -> FindingClassifier | XRayVisionClassifier:
    """The classifier that a user names: "" is the bundled one, a folder one of ours, and anything
    else a name of TorchXRayVision's (see `load_xrayvision`)."""
    if not str(name):
        return load_classifier(BUNDLED.parent / "classifier", device=device)
    if Path(name).is_dir():
        return load_classifier(name, device=device)
    return load_xrayvision(str(name), device=device)
