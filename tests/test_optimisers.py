import pytest
import torch
from torch import nn

from medsign_lite.training.optimisers import MuonOfKernels, decoder_optimiser, trained_parameters


def network(memory_format=torch.contiguous_format):
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 3, padding=1)
    )
    return layers.to(memory_format=memory_format)


def descend(module, optimiser, steps=1):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        loss = module(torch.randn(2, 4, 6, 6, generator=generator)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def moved(module, before):
    return [now.detach() - then for now, then in zip(module.parameters(), before, strict=True)]


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels-last"]
)
def test_muon_moves_a_kernel_alike_in_all_directions(memory_format):
    """An orthogonal update has equal singular values; Muon's five iterations come near that."""
    module = network(memory_format)
    before = [p.detach().clone() for p in module.parameters()]
    optimiser = decoder_optimiser(module.parameters(), "muon", learning_rate=1e-2)
    descend(module, optimiser)
    kernel, *_ = moved(module, before)
    lengths = torch.linalg.svdvals(kernel.flatten(1))
    expected = 1e-2 * 0.2 * 36**0.5  # the rate, times .2 of the longer side's root
    assert lengths.min() > 0.5 * expected and lengths.max() < 1.5 * expected
    gradient = torch.linalg.svdvals(module[0].weight.grad.flatten(1))
    assert gradient.max() / gradient.min() > 2 * lengths.max() / lengths.min()


def test_muon_leaves_what_is_no_kernel_to_adamw():
    module, reference = network(), network()
    before = [p.detach().clone() for p in module.parameters()]
    descend(module, decoder_optimiser(module.parameters(), "muon", learning_rate=1e-3))
    descend(reference, decoder_optimiser(reference.parameters(), "adamw", learning_rate=1e-3))
    for change, expected in zip(moved(module, before)[1:], moved(reference, before)[1:],
                                strict=True):  # fmt: skip
        assert torch.equal(change, expected)  # norms, biases and the last kernel of three rows


def test_muon_takes_its_rate_from_the_groups():
    module = network()
    before = [p.detach().clone() for p in module.parameters()]
    optimiser = decoder_optimiser(module.parameters(), "muon", learning_rate=1e-2)
    for group in optimiser.param_groups:
        group["lr"] = 0.0
    descend(module, optimiser)
    assert not any(change.any() for change in moved(module, before))


def test_muon_resumed_equals_muon_in_one_go():
    whole, killed = network(), network()
    optimiser = MuonOfKernels(whole.parameters(), learning_rate=1e-2)
    descend(whole, optimiser, steps=3)
    first = MuonOfKernels(killed.parameters(), learning_rate=1e-2)
    descend(killed, first, steps=3)
    resumed = MuonOfKernels(killed.parameters(), learning_rate=1e-2)
    resumed.load_state_dict(first.state_dict())
    for module, going_on in ((whole, optimiser), (killed, resumed)):
        descend(module, going_on, steps=2)
    pairs = zip(whole.parameters(), killed.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_another_optimiser_is_refused():
    with pytest.raises(ValueError, match="among .*'adamw', 'muon'.*, got 'sgd'"):
        decoder_optimiser(network().parameters(), "sgd", learning_rate=1e-3)


def test_trained_parameters_freezes_the_other_layers():
    module = nn.ModuleDict(
        {"up": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), "up1": nn.Linear(2, 2)}
    )
    assert len(trained_parameters(module)) == 6
    chosen = trained_parameters(module, ["up.1", "up1"])
    assert [p for p in module.parameters() if p.requires_grad] == chosen
    assert {id(p) for p in chosen} == {
        id(p) for p in (*module["up"][1].parameters(), *module["up1"].parameters())
    }
    assert len(trained_parameters(module)) == 6 and all(
        p.requires_grad for p in module.parameters()
    )


def test_trained_parameters_refuses_an_unknown_layer():
    with pytest.raises(ValueError, match=r"no layer 'up_blocks.9' to train; there are 0.bias, 0.w"):
        trained_parameters(network(), ["up_blocks.9"])
