"""Error-correcting codes: the Golay code's own numbers, and what a watermark would gain."""

from itertools import combinations

import pytest
import torch

from medsign_lite.error_correction import (
    golay_codewords,
    golay_decode,
    golay_encode,
    read_whole,
)
from medsign_lite.messages import random_message, random_messages


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_words_have_the_weights_of_the_extended_golay_code():
    weights, counts = golay_codewords().sum(dim=1).unique(return_counts=True)
    assert weights.tolist() == [0, 8, 12, 16, 24]
    assert counts.tolist() == [1, 759, 2576, 759, 1]


def test_the_code_is_linear():
    words = golay_codewords()
    one, other = words[torch.randint(4096, (2, 200), generator=generator())]
    assert (((one + other) % 2)[:, None] == words).all(dim=2).any(dim=1).all()


def test_a_payload_stands_at_the_front_and_comes_back():
    payload = random_messages(50, 24, generator=generator())
    message = golay_encode(payload)
    assert message.shape == (50, 48)
    assert torch.equal(message[:, :12], payload[:, :12])
    assert torch.equal(message[:, 24:36], payload[:, 12:])
    assert torch.equal(golay_decode(2 * message - 1), payload)
    assert torch.equal(golay_encode(payload[0]), message[0])


def test_any_three_errors_are_put_right_and_some_four_are_not():
    payload = random_message(12, generator=generator())
    sent = 2 * golay_encode(payload) - 1
    for count, fine in ((3, True), (4, False)):
        flips = torch.ones(len(list(combinations(range(24), count))), 24)
        for row, places in enumerate(combinations(range(24), count)):
            flips[row, list(places)] = -1
        right = (golay_decode(sent * flips) == payload).all(dim=1)
        assert bool(right.all()) == fine


def test_logits_put_right_what_bits_cannot():
    payload = random_message(12, generator=generator())
    logits = 2 * golay_encode(payload) - 1
    logits[:6] *= -0.1  # six errors, all of them doubtful
    assert torch.equal(golay_decode(logits), payload)
    assert not torch.equal(golay_decode(logits.sign()), payload)


def test_read_whole_asks_more_of_the_plain_message():
    message = random_message(48, generator=generator())
    logits = (2 * message - 1).repeat(4, 1)
    logits[1, 3] *= -0.5  # one error, outvoted by its twin
    logits[2, [3, 27]] *= -1  # both of a pair, one in each word
    logits[3, :12] *= -1  # a whole half of a word
    found = read_whole(logits, message)
    assert found["plain"].tolist() == [True, False, False, False]
    assert found["repeated"].tolist() == [True, True, False, False]
    assert found["golay"].tolist() == [True, True, True, False]


def test_which_word_was_sent_makes_no_difference():
    noise = torch.randn(300, 48, generator=generator(1))
    rates = []
    for seed in (2, 3):
        payload = random_message(24, generator=generator(seed))
        message = golay_encode(payload)
        logits = (2 * message - 1) * (1 + 0.9 * noise)
        whole = (golay_decode(logits) == payload).all(dim=1)
        assert torch.equal(whole, read_whole(logits, message)["golay"])
        rates.append(float(whole.double().mean()))
    assert rates[0] == rates[1] and 0.5 < rates[0] < 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: golay_encode(torch.zeros(13)), "12 bits a word"),
        (lambda: golay_encode(torch.full((12,), 0.5)), "bits 0 and 1"),
        (lambda: golay_decode(torch.zeros(2, 25)), "24 bits a word"),
        (lambda: read_whole(torch.zeros(2, 32), torch.zeros(32)), "divisible by 24"),
        (lambda: read_whole(torch.zeros(2, 48), torch.zeros(24)), "48 bits"),
    ],
)
def test_other_sizes_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
