"""The bundled model's tokenizer: CLIP's byte-pair encoding, learnt from the reports.

Long tokens are not allowed, so that medical words are several tokens, as they are for CLIP.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def learn_tokenizer(
    reports: Sequence[str], *, merges: int = 350, longest: int = 7, length: int = 77
) -> CLIPTokenizer:
    """Learn CLIP's byte-pair encoding (Sennrich et al., ACL 2016) from reports.

    The same reports give the same tokenizer, which a run that resumes relies on; the trainers of
    the usual library break ties by chance.

    Args:
        merges: pairs of tokens to merge at most, the most frequent first.
        longest: characters of a token at most, so that long words stay several tokens.
        length: tokens of a prompt, padding included; the rest is cut off.
    """
    # Every byte, within a word and at its end, so that no word of a user's prompt is unknown.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = [*letters, *(letter + WORD_END for letter in letters)]
    backend = _clip_tokenizer(alphabet, [], length).backend_tokenizer
    words = Counter()
    for report, count in Counter(reports).items():
        normalised = backend.normalizer.normalize_str(report)
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalised):
            words[word] += count
    learnt = learn_merges(words, merges=merges, longest=longest)
    return _clip_tokenizer([*alphabet, *map("".join, learnt)], learnt, length)


def learn_merges(words: Mapping[str, int], *, merges: int, longest: int) -> list[tuple[str, str]]:
    """The most frequent pairs of neighbouring tokens, merged one after another.

    Args:
        words: how often each word occurs.
        merges, longest: as in `learn_tokenizer`; ties go to the pair first in the alphabet.

    >>> learn_merges({"edema": 3, "edge": 1}, merges=2, longest=7)
    [('e', 'd'), ('ed', 'e')]
    """
    pieces = {word: [*word[:-1], word[-1] + WORD_END] for word in words}
    learnt = []
    for _ in range(merges):
        pairs = Counter()
        for word, tokens in pieces.items():
            for pair in pairwise(tokens):
                pairs[pair] += words[word]
        allowed = [p for p in pairs if len("".join(p).removesuffix(WORD_END)) <= longest]
        if not allowed:
            break
        best = min(allowed, key=lambda pair: (-pairs[pair], pair))
        learnt.append(best)
        for word, tokens in pieces.items():
            pieces[word] = _merged(tokens, best)
    return learnt


def _merged(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    merged, i = [], 0
    while i < len(tokens):
        together = tuple(tokens[i : i + 2]) == pair
        merged.append("".join(pair) if together else tokens[i])
        i += 2 if together else 1
    return merged


def _clip_tokenizer(tokens: list[str], merges: list[tuple[str, str]], length: int) -> CLIPTokenizer:
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate([*tokens, START, END])},
        merges=merges,
        model_max_length=length,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=END,
    )
