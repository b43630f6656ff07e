"""CLIP's byte-pair encoding, learnt from reports."""

import pytest

from medsign_lite.generator.report_tokenizer import learn_merges, learn_tokenizer

REPORTS = [
    "Severe right lower lobe pneumonia. No pneumothorax.",
    "Moderate cardiomegaly and small left effusion.",
    "No cardiomegaly, effusion, pneumonia or pneumothorax.",
] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer(REPORTS)


def test_merges_by_hand():
    # "ab" occurs 5 times, "b c</w>" 4 times; after the first merge "ab c</w>" is left, 4 times.
    words = {"abc": 4, "abd": 1, "xyz": 3}
    assert learn_merges(words, merges=2, longest=9) == [("a", "b"), ("ab", "c</w>")]
    # A tie goes to the alphabet: "xy" and "yz</w>" both occur 3 times.
    assert learn_merges({"xyz": 3}, merges=1, longest=9) == [("x", "y")]
    # With two characters at most, "abc" never becomes one token.
    assert learn_merges({"abc": 4}, merges=9, longest=2) == [("a", "b")]


def test_the_same_reports_give_the_same_tokenizer(tokenizer):
    again = learn_tokenizer(REPORTS[::-1])
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.tokenize(REPORTS[0]) == tokenizer.tokenize(REPORTS[0])


def test_tokens_are_short_so_that_medical_words_are_several(tokenizer):
    learnt = [token.removesuffix("</w>") for token in tokenizer.get_vocab() if token[0] != "<"]
    assert max(map(len, learnt)) <= 7
    for word in ("pneumothorax", "pneumonia", "cardiomegaly", "effusion"):
        pieces = tokenizer.tokenize(word)
        assert len(pieces) >= 2 and "".join(pieces) == word + "</w>"
    assert tokenizer.tokenize("No") == ["no</w>"]


def test_any_text_is_tokenised_without_unknowns(tokenizer):
    pieces = tokenizer.tokenize("Zürich: 3 mm nodule (ö).")
    assert tokenizer.unk_token not in pieces
    assert tokenizer.decode(tokenizer("Zebra é").input_ids[1:-1]).strip() == "zebra é"


def test_prompts_begin_end_and_are_padded_as_the_text_encoder_expects(tokenizer):
    ids = tokenizer("no effusion", padding="max_length").input_ids
    assert len(ids) == tokenizer.model_max_length == 77
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert tokenizer.is_fast  # offsets of words need it
