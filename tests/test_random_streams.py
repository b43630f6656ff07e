import hashlib

import torch

from medsign_lite.training.random_streams import named_generator


def drawn(seed, name):
    return torch.rand(4, generator=named_generator(seed, name)).tolist()


def test_a_name_decides_its_stream_whatever_was_drawn_before():
    first = drawn(0, "curve-jpeg")
    drawn(0, "another")
    assert drawn(0, "curve-jpeg") == first


def test_names_and_seeds_have_streams_of_their_own():
    streams = [drawn(*key) for key in ((0, "a"), (0, "b"), (1, "a"), (11, "a"), (1, "1 a"))]
    assert all(one not in streams[:i] for i, one in enumerate(streams))


def test_the_seed_is_what_it_was_when_results_were_recorded():
    start = int(hashlib.sha256(b"3 watermark").hexdigest()[:12], 16)
    assert named_generator(3, "watermark").initial_seed() == start
