import json
import os

import pytest
import torch

from medsign_lite.checkpoints import save_checkpoint
from medsign_lite.deployment import keys
from medsign_lite.detection import threshold
from medsign_lite.messages import message_to_string, random_messages


def messages(count, bits=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [message_to_string(m) for m in random_messages(count, bits, generator=generator)]


def turned(message, count):
    """The message with its first `count` bits turned over."""
    return "".join("10"[int(bit)] for bit in message[:count]) + message[count:]


def registry(count=2, bits=48):
    return keys.Registry(bits=bits, keys=tuple(
        keys.Key(id=f"key-{i}", message=m, modality="chest", decoder=f"d{i}", note="ours")
        for i, m in enumerate(messages(count, bits))
    ))  # fmt: skip


def save_decoder(folder, **config):
    return save_checkpoint(folder, {"weight": torch.zeros(1)}, {"kind": "decoder", **config})


def test_hamming_distance_by_hand():
    assert keys.hamming_distance("0110", "0011") == 2
    with pytest.raises(ValueError, match="messages of one length, got 1 and 2"):
        keys.hamming_distance("0", "01")


@pytest.mark.parametrize("bits, expected", [(48, 15), (20, 1)])
def test_minimum_distance_by_hand(bits, expected):
    # 41 of 48 bits are needed, so 7 may be wrong; of 20 bits none.
    assert keys.minimum_distance(bits) == expected


@pytest.mark.parametrize("bits", [32, 48, 100])
def test_minimum_distance_leaves_no_image_between_two_keys(bits):
    # About halfway between two messages that far apart, one is detected and the other is not; were
    # they one bit closer, an image halfway could be both.
    needed, apart = threshold(bits, 1e-6), keys.minimum_distance(bits)
    assert bits - apart // 2 >= needed > bits - (apart + 1) // 2
    assert (apart - 1) % 2 == 0 and bits - (apart - 1) // 2 >= needed


def test_minimum_distance_refuses_messages_that_prove_nothing():
    with pytest.raises(ValueError, match="19 bits cannot reach a false-positive rate of 1e-06"):
        keys.minimum_distance(19)


def test_registry_adds_and_finds():
    before = registry(1)
    key = keys.Key(id="another", message=messages(2)[1])
    after = before.add(key)
    assert after.find("another") is key and len(before.keys) == 1
    with pytest.raises(ValueError, match="key 'none' is not in the registry; it has: key-0"):
        before.find("none")
    with pytest.raises(ValueError, match="it has: none"):
        keys.Registry(bits=48).find("key-0")


def test_registry_refuses_a_second_key_of_the_same_id():
    with pytest.raises(ValueError, match="the id 'key-0' is in the registry already"):
        registry(1).add(keys.Key(id="key-0", message=messages(2)[1]))


@pytest.mark.parametrize("distance", [0, 1, 14])
def test_registry_refuses_a_message_too_close_to_another(distance):
    close = keys.Key(id="close", message=turned(messages(1)[0], distance))
    with pytest.raises(ValueError, match=f"'key-0' and 'close': .* at least 15 .* in {distance}:"):
        registry(1).add(close)


def test_registry_takes_a_message_just_far_enough():
    far = keys.Key(id="far", message=turned(messages(1)[0], 15))
    assert registry(1).add(far).find("far") is far


def test_registry_refuses_another_number_of_bits():
    with pytest.raises(ValueError, match="key 'short': expected a message of 48 bits, got 4"):
        registry(1).add(keys.Key(id="short", message="0101"))
    for bits in ("48", True, 48.0):
        with pytest.raises(ValueError, match="registry: expected a number of bits"):
            keys.Registry(bits=bits)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"id": "../a"}, "expected an id of 1 to 64 letters"),
        ({"id": ""}, "expected an id"),
        ({"id": "a" * 65}, "expected an id"),
        ({"message": "01x"}, "key 'a': expected a message of 0 and 1"),
        ({"message": ""}, "key 'a': expected a message of 0 and 1"),
        ({"note": None}, "expected text as its note, got NoneType"),
        ({"decoder": "/d"}, "relative to the registry's, got an absolute path"),
    ],
    ids=["path", "no-id", "long-id", "no-bits", "no-message", "no-note", "absolute"],
)
def test_key_refuses(changes, match):
    with pytest.raises(ValueError, match=match):
        keys.Key(**{"id": "a", "message": "0101", **changes})


def test_key_does_not_show_its_message():
    key = registry(1).keys[0]
    assert key.message not in repr(registry(1)) and "key-0" in repr(key)
    with pytest.raises(ValueError) as caught:
        keys.Key(id="a", message=key.message + "x")
    assert key.message not in str(caught.value)


def test_registry_file_round_trip(tmp_path):
    path = keys.write_registry(tmp_path / "new" / "keys.json", registry(3))
    assert keys.read_registry(path) == registry(3)
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.json"]


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX systems")
def test_write_registry_writes_for_its_owner_alone(tmp_path):
    path = keys.write_registry(tmp_path / "keys.json", registry(1))
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    keys.write_registry(path, registry(2))
    assert path.stat().st_mode & 0o777 == 0o600


def test_write_registry_leaves_the_earlier_one_if_it_fails(tmp_path, monkeypatch):
    path = keys.write_registry(tmp_path / "keys.json", registry(1))

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        keys.write_registry(path, registry(2))
    assert keys.read_registry(path) == registry(1) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda d: d.update(version=2), "expected version 1, got 2"),
        (lambda d: d.pop("version"), "expected version 1, got None"),
        (lambda d: d.update(format="other"), 'expected JSON with "format": "medsign_lite keys"'),
        (lambda d: d.pop("bits"), r"the file: missing \['bits'\], unexpected \[\]"),
        (lambda d: d.update(bits=32), "key 'key-0': expected a message of 32 bits, got 48"),
        (lambda d: d.update(keys={}), "expected a list of keys, got dict"),
        (lambda d: d.update(keys=["a"]), "key 1: expected an object, got str"),
        (lambda d: d["keys"][1].update(id="key-0"), "the id 'key-0' is in the registry already"),
        (lambda d: d["keys"][1].pop("note"), r"key 2: missing \['note'\]"),
        (lambda d: d["keys"][0].update(secret=1), r"key 1: missing \[\], unexpected \['secret'\]"),
        (lambda d: d["keys"][0].update(message=5), "expected text as its message, got int"),
    ],
    ids=["version", "no-version", "format", "no-bits", "bits", "keys", "entry", "id", "field",
         "unknown", "type"],
)  # fmt: skip
def test_read_registry_refuses(tmp_path, change, match):
    path = keys.write_registry(tmp_path / "keys.json", registry(2))
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"registry .*keys.json: .*{match}"):
        keys.read_registry(path)


def test_read_registry_refuses_what_is_no_registry(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json does not exist"):
        keys.read_registry(tmp_path / "none.json")
    path = keys.write_registry(tmp_path / "keys.json", registry(2))
    truncated = path.read_bytes()[:-20]
    for content, match in (
        (truncated, "expected JSON, got"),
        (b"\xff", "expected JSON, got 1 bytes"),
        (b"[]", "expected JSON with"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"keys.json: {match}"):
            keys.read_registry(path)


def test_registry_of_decoders_takes_decoders_only(tmp_path):
    first, second = messages(2)
    save_decoder(tmp_path / "decoder_chest", message=first, modality="chest")
    save_decoder(tmp_path / "other", message=second)
    save_checkpoint(tmp_path / "extractor", {}, {"kind": "extractor"})
    made = keys.registry_of_decoders(tmp_path, note="ours")
    assert made == keys.Registry(bits=48, keys=(
        keys.Key(id="chest", message=first, modality="chest", decoder="decoder_chest", note="ours"),
        keys.Key(id="other", message=second, decoder="other", note="ours"),
    ))  # fmt: skip


def test_registry_of_decoders_refuses(tmp_path):
    with pytest.raises(ValueError, match="expected folders of decoders, found none"):
        keys.registry_of_decoders(tmp_path)
    save_decoder(tmp_path / "decoder_chest")
    with pytest.raises(ValueError, match="decoder_chest: its configuration names no message"):
        keys.registry_of_decoders(tmp_path)
    (tmp_path / "decoder_chest" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: expected JSON"):
        keys.registry_of_decoders(tmp_path)


def test_shipped_registry_agrees_with_the_shipped_decoders():
    made = keys.registry_of_decoders(keys.SHIPPED.parent)
    shipped = keys.read_registry(keys.SHIPPED)
    again = "decoders were replaced: run `medsign-lite keys make` on their folder, with --replace"
    known = [(key.id, key.message, key.modality, key.decoder) for key in shipped.keys]
    wanted = [(key.id, key.message, key.modality, key.decoder) for key in made.keys]
    assert known == wanted, again
    for key in shipped.keys:
        assert (keys.SHIPPED.parent / key.decoder).is_dir()
