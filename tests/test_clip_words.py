"""Words of reports in the real CLIP vocabulary, and through a pipeline that carries it."""

import pytest
import torch
from transformers import CLIPTokenizer

from medsign_lite.latent_diffusion import check_prompts
from medsign_lite.localisation import pathology_map, word_tokens
from tests.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def clip_tokenizer(root):
    folder = root.parent / "shared" / "data" / "clip_bpe"
    if not folder.is_dir():
        pytest.skip(f"no real CLIP vocabulary at {folder.relative_to(root.parent)}")
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=77
    )


@pytest.mark.parametrize(
    ("word", "count"),
    [("cardiomegaly", 4), ("atelectasis", 4), ("pneumothorax", 4), ("effusion", 2), ("edema", 2)],
)
@pytest.mark.parametrize(
    ("before", "place"), [("", 1), ("No ", 2), ("There is right basilar ", None)],
    ids=["first", "second", "later"],
)  # fmt: skip
def test_word_is_as_many_tokens_as_clip_makes(clip_tokenizer, word, count, before, place):
    prompt = f"{before}{word.capitalize()}, unchanged."
    positions = word_tokens(clip_tokenizer, prompt, word)
    assert positions == list(range(positions[0], positions[0] + count))
    assert place in (None, positions[0])  # the start token is number 0
    ids = clip_tokenizer(prompt, padding="max_length", truncation=True).input_ids
    pieces = clip_tokenizer.convert_ids_to_tokens([ids[i] for i in positions])
    assert "".join(pieces) == f"{word}</w>"


def test_words_of_one_report_share_no_token(clip_tokenizer):
    report = "Cardiomegaly with pulmonary edema and left effusion. No pneumothorax; atelectasis."
    words = ("cardiomegaly", "edema", "effusion", "pneumothorax", "atelectasis")
    positions = [i for word in words for i in word_tokens(clip_tokenizer, report, word)]
    assert positions == sorted(set(positions)) and len(positions) == 4 + 2 + 2 + 4 + 4


def test_word_that_ends_at_the_limit_is_kept_and_the_next_is_not(clip_tokenizer):
    """<start>, 71 times "no", four tokens of cardiomegaly, <end>: 77."""
    prompt = "no " * 71 + "cardiomegaly"
    check_prompts(clip_tokenizer, [prompt])
    assert word_tokens(clip_tokenizer, prompt, "cardiomegaly") == [72, 73, 74, 75]
    with pytest.raises(ValueError, match="limit of 77 cuts off the word 'cardiomegaly'"):
        word_tokens(clip_tokenizer, "no " + prompt, "cardiomegaly")
    with pytest.raises(ValueError, match=r"1 of 2 prompts .* 77 tokens .* number 1 .* with 78"):
        check_prompts(clip_tokenizer, ["edema", "no " + prompt])


def test_map_of_a_word_of_four_tokens_chooses_among_them(clip_tokenizer):
    pipeline = tiny_pipeline(tokenizer=clip_tokenizer)
    prompt = "Mild cardiomegaly with small effusion."
    result = pathology_map(pipeline, [prompt], [["cardiomegaly", "effusion"]], seeds=[1], steps=2)
    assert [len(selection.scores) for selection in result.selections[0]] == [4, 2]
    assert result.maps.shape == (1, 32, 32) and torch.isfinite(result.maps).all()
