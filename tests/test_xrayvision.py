"""TorchXRayVision's conventions, against a stand-in for the package, which CI cannot import."""

import pickle
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from medsign_lite.data import CHEST_FINDINGS
from medsign_lite.judges.xrayvision import XRayVisionClassifier, load_xrayvision, open_classifier
from medsign_lite.latent_diffusion import BUNDLED

# The order of densenet121-res224-all.
PATHOLOGIES = [
    "Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema",
    "Fibrosis", "Effusion", "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass",
    "Hernia", "Lung Lesion", "Fracture", "Lung Opacity", "Enlarged Cardiomediastinum",
]  # fmt: skip


class Network(nn.Module):
    """Answers column / 100, and keeps what it was shown."""

    def __init__(self, weights="densenet121-res224-all", pathologies=PATHOLOGIES):
        super().__init__()
        self.weights, self.pathologies = weights, pathologies
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image):
        self.seen = image
        return (self.scale * torch.arange(len(self.pathologies)) / 100).expand(len(image), -1)


def test_probability_selects_by_name_and_adds_no_sigmoid():
    classifier = XRayVisionClassifier(Network(), size=224)
    values = classifier.probability(torch.rand(2, 3, 64, 64), CHEST_FINDINGS)
    columns = [8, 3, 0, 4, 10, 7]  # pneumonia, pneumothorax, atelectasis, edema, ...
    torch.testing.assert_close(values, torch.tensor(columns).div(100).expand(2, 6))


def test_probability_shows_one_channel_of_the_middle_square_in_its_range():
    classifier = XRayVisionClassifier(Network(), size=32)
    image = torch.zeros(1, 3, 32, 64)
    image[..., 16:48] = 1  # the middle square is white, the rest must not be seen
    classifier.probability(image)
    assert classifier.network.seen.shape == (1, 1, 32, 32)
    assert (classifier.network.seen == 1024).all()
    classifier.probability(torch.zeros(1, 3, 40, 40))
    assert (classifier.network.seen == -1024).all()


def test_probability_leaves_out_what_the_network_was_not_trained_for():
    classifier = XRayVisionClassifier(Network(pathologies=["Edema", "", "Mass"]), size=32)
    assert classifier.probability(torch.rand(1, 3, 32, 32)).shape == (1, 2)
    with pytest.raises(ValueError, match="does not know effusion, but edema, mass"):
        classifier.probability(torch.rand(1, 3, 32, 32), ["Effusion"])


@pytest.mark.parametrize(
    ("weights", "size"), [("densenet121-res224-nih", 224), ("resnet50-res512-all", 512)]
)
def test_load_takes_network_and_size_from_the_name(monkeypatch, weights, size):
    package = ModuleType("torchxrayvision")
    package.models = SimpleNamespace(DenseNet=Network, ResNet=Network)
    monkeypatch.setitem(sys.modules, "torchxrayvision", package)
    classifier = load_xrayvision(weights)
    assert (classifier.size, classifier.network.weights) == (size, weights)
    assert not classifier.training and not classifier.network.scale.requires_grad


def test_open_classifier_takes_the_bundled_one_a_folder_or_a_name(monkeypatch):
    bundled = open_classifier()
    folder = BUNDLED.parent / "classifier"
    assert bundled.config == open_classifier(folder).config
    monkeypatch.setattr("medsign_lite.judges.xrayvision.load_xrayvision", lambda name, device: name)
    assert open_classifier("densenet121-res224-chex") == "densenet121-res224-chex"


def test_load_says_that_the_package_is_too_old_to_read_its_files(monkeypatch):
    def refuse(weights):
        raise pickle.UnpicklingError("Weights only load failed")

    package = ModuleType("torchxrayvision")
    package.models = SimpleNamespace(DenseNet=refuse)
    monkeypatch.setitem(sys.modules, "torchxrayvision", package)
    with pytest.raises(ImportError, match="install a newer one .Weights only load failed"):
        load_xrayvision("densenet121-res224-nih")


def test_load_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchxrayvision", None)
    with pytest.raises(ImportError, match="pip install torchxrayvision torchvision"):
        load_xrayvision()


def test_load_refuses_other_names():
    with pytest.raises(ValueError, match="expected densenet121-res224-NAME.*got 'chexpert'"):
        load_xrayvision("chexpert")
