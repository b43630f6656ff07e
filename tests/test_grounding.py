"""Grounding by hand: which tokens, which places, which share; and attention as it is recorded."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from medsign_lite.attention import record_attention
from medsign_lite.data import Record
from medsign_lite.generator.grounding import (
    UNGROUNDED,
    attention_with_gradients,
    grounding_loss,
    read_groundings,
    summed_maps,
)
from medsign_lite.generator.report_tokenizer import learn_tokenizer
from medsign_lite.localisation import word_tokens
from tests.tiny_pipeline import tiny_pipeline

REPORT = "Severe right lower lobe pneumonia and small left effusion."


def record_of(folder, *masks, report=REPORT):
    """Each of `masks` is where a 32 x 32 mask is set, or None."""
    paths = []
    for number, place in enumerate(masks):
        mask = torch.zeros(32, 32, dtype=torch.uint8)
        if place is not None:
            mask[place] = 255
            Image.fromarray(mask.numpy()).save(folder / f"{number}.png")
        paths.append(None if place is None else folder / f"{number}.png")
    words = ("pneumonia", "effusion")[: len(masks)]
    return Record(
        id="one", image=folder / "one.png", modality="chest", split="train", report=report,
        findings=words, words=words, sides=("",) * len(words), masks=tuple(paths),
    )  # fmt: skip


def test_tokens_belong_to_the_finding_that_their_word_names(tmp_path):
    tokenizer = learn_tokenizer([REPORT] * 20)
    both = record_of(tmp_path, (5, 9), (slice(20, None), slice(30, None)))
    owners, regions = read_groundings([both, record_of(tmp_path)], tokenizer, (8, 8))
    assert owners.shape == (2, 77) and regions.shape == (2, 2, 8, 8)
    for number, word in enumerate(both.words):
        tokens = word_tokens(tokenizer, REPORT, word)
        assert (owners[0, tokens] == number).all()
        owners[0, tokens] = UNGROUNDED
    assert (owners == UNGROUNDED).all()
    assert regions[0, 0].nonzero().tolist() == [[1, 2]]  # a single pixel, in a latent of 4 x 4
    assert regions[0, 1].nonzero().tolist() == [[5, 7], [6, 7], [7, 7]]
    assert not regions[1].any()


def test_findings_of_one_word_may_be_looked_for_in_either_place(tmp_path):
    tokenizer = learn_tokenizer([REPORT] * 20)
    both = replace(record_of(tmp_path, (5, 9), (30, 30)), words=("effusion", "effusion"))
    owners, regions = read_groundings([both], tokenizer, (8, 8))
    own = word_tokens(tokenizer, REPORT, "effusion")
    assert (owners[0, own] == 0).all() and (owners == UNGROUNDED).sum() == 77 - len(own)
    assert regions[0, 0].nonzero().tolist() == [[1, 2], [7, 7]]


def test_masks_are_cut_as_images_are(tmp_path):
    tokenizer = learn_tokenizer([REPORT] * 20)
    mask = torch.zeros(32, 64, dtype=torch.uint8)
    mask[:, 16] = 255  # the first column of the central square
    Image.fromarray(mask.numpy()).save(tmp_path / "wide.png")
    wide = replace(record_of(tmp_path, (0, 0)), masks=(tmp_path / "wide.png",))
    _, regions = read_groundings([wide], tokenizer, (8, 8))
    assert regions[0, 0].any(dim=0).nonzero().tolist() == [[0]]


def test_a_word_that_is_only_part_of_one_is_named_without_its_report(tmp_path):
    tokenizer = learn_tokenizer([REPORT] * 20)
    part = record_of(tmp_path, (0, 0), report="No pneumonias were seen.")
    with pytest.raises(ValueError, match="record 'one': .* have 'pneumonia' as a whole") as caught:
        read_groundings([part], tokenizer, (8, 8))
    assert "seen" not in str(caught.value)


def test_findings_without_a_mask_and_words_that_are_cut_off_are_not_grounded(tmp_path):
    tokenizer = learn_tokenizer([REPORT] * 20)
    unmasked = record_of(tmp_path, None, (0, 0))
    long = record_of(tmp_path, (0, 0), report="Edema " * 80 + "pneumonia.")
    owners, regions = read_groundings([unmasked, long], tokenizer, (8, 8))
    assert (owners[0] == 1).sum() == len(word_tokens(tokenizer, REPORT, "effusion"))
    assert not (owners[0] == 0).any() and not regions[0, 0].any()
    assert (owners[1] == UNGROUNDED).all()


def test_loss_is_the_squared_share_that_strays():
    maps = torch.zeros(2, 3, 2, 2)
    maps[0, 1] = torch.tensor([[3.0, 1.0], [0.0, 0.0]])  # a quarter strays
    maps[1, 0] = torch.tensor([[0.0, 0.5], [0.5, 0.0]])  # all of it
    maps[1, 2] = 7.0  # nobody's token
    owners = torch.tensor([[UNGROUNDED, 1, UNGROUNDED], [0, UNGROUNDED, UNGROUNDED]])
    regions = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    regions[0, 1, 0, 0] = regions[0, 0, 0, 1] = regions[1, 0, 0, 0] = True
    assert grounding_loss(maps, owners, regions).item() == pytest.approx((1 / 16 + 1) / 2)


def test_loss_of_nothing_grounded_is_zero_and_can_be_differentiated():
    maps = torch.rand(1, 2, 2, 2, requires_grad=True)
    loss = grounding_loss(maps, torch.full((1, 2), UNGROUNDED), torch.ones(1, 1, 2, 2).bool())
    loss.backward()
    assert loss.item() == 0 and not maps.grad.any()


def unet_call(pipeline, size=(8, 8)):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, *size, generator=generator)
    with torch.no_grad():
        text, _ = pipeline.encode_prompt(["edema", "no effusion"], "cpu", 1, False)
    return lambda: pipeline.unet(latents, torch.tensor(300), encoder_hidden_states=text).sample


@pytest.mark.parametrize("size", [(8, 8), (8, 16)], ids=["square", "wide"])
def test_attention_is_the_recorded_one_over_the_number_of_heads(size):
    pipeline = tiny_pipeline()
    call = unet_call(pipeline, size)
    with torch.no_grad(), record_attention(pipeline, conditional="all") as record:
        call()
    with attention_with_gradients(pipeline.unet) as attention:
        call()
    assert len(attention) == len(record.layers)
    heads = {pipeline.unet.get_submodule(name).heads for name in record.layers}
    assert len(heads) == 1
    torch.testing.assert_close(summed_maps(attention, size) * heads.pop(), record.maps)


def test_hooks_are_gone_afterwards_whatever_happens():
    pipeline = tiny_pipeline()
    call = unet_call(pipeline)
    with pytest.raises(KeyError), attention_with_gradients(pipeline.unet) as attention:
        raise KeyError
    call()
    assert not attention


def test_following_the_gradient_brings_attention_into_the_region():
    pipeline = tiny_pipeline()
    unet, call = pipeline.unet.requires_grad_(True), unet_call(pipeline)
    owners = torch.full((2, pipeline.tokenizer.model_max_length), UNGROUNDED)
    owners[:, 1] = 0
    regions = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    regions[:, :, :4] = True
    optimiser, losses = torch.optim.Adam(unet.parameters(), lr=3e-3), []
    for _ in range(12):
        with attention_with_gradients(unet) as attention:
            call()
        loss = grounding_loss(summed_maps(attention, (8, 8)), owners, regions)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
