import pytest
import torch
from scipy.stats import binom

from medsign_lite.deployment.key_detection import detect_keys
from medsign_lite.deployment.keys import Key, Registry
from medsign_lite.detection import detect_logits
from medsign_lite.messages import message_from_string, random_messages


def registry(messages):
    keys = [Key(id=f"key-{i}", message="".join(str(int(bit)) for bit in message))
            for i, message in enumerate(messages)]  # fmt: skip
    return Registry(bits=len(keys[0].message) if keys else 48, keys=tuple(keys))


@pytest.fixture
def messages():
    return random_messages(10, 48, generator=torch.Generator().manual_seed(3))


def logits_of(message, wrong=0):
    bits = message.clone()
    bits[:wrong] = 1 - bits[:wrong]
    return (2 * bits - 1)[None]


@pytest.mark.parametrize("wrong, detected", [(0, True), (6, True), (7, False)])
def test_detect_keys_names_the_key_at_its_own_threshold(messages, wrong, detected):
    # Ten keys: of equally sure bits 42 are needed instead of 41, as p-values are ten times larger.
    got = detect_keys(logits_of(messages[4], wrong), registry(messages))[0]
    assert (got.matching, got.compared, got.bits) == (48 - wrong, 10, 48)
    assert got.p_value == pytest.approx(10 * binom.sf(47 - wrong, 48, 0.5), rel=1e-9)
    assert got.detected == detected
    assert got.key == ("key-4" if detected else None)


@pytest.mark.parametrize("number, needed", [(1, 41), (3, 41), (4, 42), (100, 43)])
def test_detect_keys_tests_each_key_at_the_rate_divided(number, needed):
    keys = tuple(Key(id=f"k{i}", message="0" * 48) for i in range(number))
    made = Registry(bits=48)
    object.__setattr__(made, "keys", keys)  # alike, which a registry refuses: only n counts here
    enough, too_few = (logits_of(torch.zeros(48), 48 - bits) for bits in (needed, needed - 1))
    assert detect_keys(enough, made)[0].detected and not detect_keys(too_few, made)[0].detected


def test_detect_keys_of_one_key_is_detect_logits(messages):
    batch = torch.cat([logits_of(messages[0], wrong) for wrong in (0, 7, 8, 24)])
    single = registry(messages[:1])
    pairs = zip(detect_keys(batch, single), detect_logits(batch, messages[0]), strict=True)
    for mine, other in pairs:
        for name in ("matching", "bits", "p_value", "detected"):
            assert getattr(mine, name) == getattr(other, name)


def test_detect_keys_p_value_is_at_most_one(messages):
    far = logits_of(1 - messages[0])
    got = detect_keys(far, registry(messages[:2]), false_positive_rate=1e-3)[0]
    assert got.p_value <= 1 and not got.detected and got.keys == ()
    middle = logits_of(messages[0], 24)
    assert detect_keys(middle, registry(messages))[0].p_value == 1.0


def test_detect_keys_reports_a_tie():
    # Two keys 16 bits apart, an image halfway: 40 of 48 match either, enough at a rate of 1e-3.
    zeros, other = torch.zeros(48), torch.zeros(48)
    other[:16] = 1
    got = detect_keys(logits_of(zeros, 8), registry([zeros, other]), false_positive_rate=1e-3)[0]
    assert (got.matching, got.detected, got.keys, got.key) == (40, True, ("key-0", "key-1"), None)
    assert str(got).startswith("watermark detected, tie of keys key-0, key-1: 40 of 48 bits")
    strict = detect_keys(logits_of(zeros, 8), registry([zeros, other]))[0]
    assert not strict.detected and strict.keys == ()


def test_detect_keys_takes_the_better_of_two_detected_keys():
    zeros, other = torch.zeros(48), torch.zeros(48)
    other[:16] = 1
    got = detect_keys(logits_of(zeros, 7), registry([other, zeros]), false_positive_rate=1e-2)[0]
    assert got.key == "key-1" and got.matching == 41


def test_detect_keys_takes_the_key_that_the_sure_bits_speak_for():
    zeros, other = torch.zeros(48), torch.zeros(48)
    other[:16] = 1
    logits = -torch.ones(1, 48)
    logits[:, :9] = 0.2  # of the bits that tell them apart, more lean to the other, but little
    got = detect_keys(logits, registry([zeros, other]), false_positive_rate=1e-2)[0]
    assert (got.matching, got.key) == (39, "key-0")  # of the other 41 match


def test_detect_keys_keeps_its_rate_over_all_keys(messages):
    # 4,000 unmarked images, ten keys: at most 1 % may be called marked, by any of them.
    logits = torch.randn(4_000, 48, generator=torch.Generator().manual_seed(1))
    found = detect_keys(logits, registry(messages), false_positive_rate=1e-2)
    rate = sum(got.detected for got in found) / len(found)
    assert rate == pytest.approx(1e-2, abs=0.004)
    uncorrected = sum(got.p_value / 10 <= 1e-2 for got in found)
    assert uncorrected > 5 * 1e-2 * len(found)


def test_key_detection_prints_as_a_sentence_without_its_message(messages):
    made = registry(messages)
    text = str(detect_keys(logits_of(messages[2]), made)[0])
    assert text.startswith("watermark detected, of key key-2: 48 of 48 bits match the best of 10")
    assert text.endswith("10 keys (p = 3.6e-14 over all keys, at most 1e-06 is needed)")
    assert made.keys[2].message not in text
    text = str(detect_keys(logits_of(messages[2], 24), made)[0])
    assert text.startswith("no watermark detected: ")


def test_detect_keys_refuses(messages):
    logits = logits_of(messages[0])
    with pytest.raises(ValueError, match="at least one key, got an empty one"):
        detect_keys(logits, Registry(bits=48))
    with pytest.raises(ValueError, match="keys have 48 bits, the extractor reads 32"):
        detect_keys(logits[:, :32], registry(messages))
    for rate in (0, 1, 5, float("nan")):
        with pytest.raises(ValueError, match=r"a false-positive rate in \(0, 1\), got"):
            detect_keys(logits, registry(messages), false_positive_rate=rate)
    with pytest.raises(ValueError, match="48 bits cannot reach a false-positive rate of 1e-16"):
        detect_keys(logits, registry(messages), false_positive_rate=1e-15)
    with pytest.raises(ValueError, match="finite logits"):
        detect_keys(logits * float("nan"), registry(messages))
    assert message_from_string(registry(messages).keys[0].message).equal(messages[0])
