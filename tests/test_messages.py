import pytest
import torch

from medsign_lite import messages


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_random_message_is_bits_and_deterministic():
    message = messages.random_message(48, generator=generator())
    assert message.shape == (48,) and message.dtype == torch.float32
    assert set(message.tolist()) == {0.0, 1.0}
    assert torch.equal(message, messages.random_message(48, generator=generator()))
    assert not torch.equal(message, messages.random_message(48, generator=generator(1)))


def test_random_messages_are_fair_and_differ():
    drawn = messages.random_messages(4000, 8, generator=generator())
    assert drawn.shape == (4000, 8)
    assert (drawn.mean(dim=0) - 0.5).abs().max() < 0.04  # 5 standard deviations
    assert len(torch.unique(drawn, dim=0)) == 256


def test_random_messages_refuses_no_bits():
    with pytest.raises(ValueError, match="at least one bit"):
        messages.random_message(0, generator=generator())


def test_string_round_trip_and_order():
    assert messages.message_to_string(torch.tensor([1.0, 0.0, 0.0])) == "100"
    text = messages.message_to_string(messages.random_message(48, generator=generator()))
    assert messages.message_to_string(messages.message_from_string(text)) == text
    assert messages.message_from_string("11_0 0", bits=4).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    "text, match",
    [
        ("10", "of 4 bits, got 2"), ("10210", "got '2' as character 3$"),
        ("1 0_\n1x 1", "got 'x' as character 7$"), ("abcd", "got 'a' as character 1$"),
        (5, "got int"),
    ],
)  # fmt: skip
def test_message_from_string_refuses(text, match):
    with pytest.raises(ValueError, match=match) as caught:
        messages.message_from_string(text, bits=4)
    assert str(text) not in str(caught.value)  # it may be a secret but for a slip


@pytest.mark.parametrize(
    "message, match",
    [
        ("0101", "got str; message_from_string"),
        (torch.zeros(3), r"of 4 bits, .* got \(3,\)"),
        (torch.zeros(1, 1, 4), r"got \(1, 1, 4\)"),
        (torch.tensor([0, 1, 0, 0.5]), "bits 0 and 1 in the message, got 0.5"),
        (torch.tensor([0, 1, -1, 0]), "got -1"),
        (torch.tensor([0, 1, torch.nan, 0]), "got nan"),
    ],
)
def test_check_message_refuses(message, match):
    with pytest.raises(ValueError, match=match):
        messages.check_message(message, 4)


def test_check_message_accepts_one_and_several():
    messages.check_message(torch.tensor([0, 1, 1, 0]), 4)
    messages.check_message(torch.zeros(5, 4), 4)


def test_message_to_string_refuses_a_batch():
    with pytest.raises(ValueError, match="one message"):
        messages.message_to_string(torch.zeros(2, 4))


def test_ungroup_leaves_the_bits_and_whatever_else_there_is():
    assert messages.ungroup(" 0110_1 0\n1a") == "0110101a"


def test_read_message_takes_bits_or_a_seed():
    assert messages.read_message("1011", bits=4).tolist() == [1, 0, 1, 1]
    drawn = messages.random_message(48, generator=generator(7))
    assert torch.equal(messages.read_message("7", bits=48), drawn)
    with pytest.raises(ValueError, match="48"):
        messages.read_message("1" * 47, bits=48)
