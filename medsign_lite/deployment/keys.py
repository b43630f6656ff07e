"""Keys: which messages are in use, by whom, and in a file.

A key is a message with a name; a registry lists the keys of a group, so that `detect_keys` can say
whose an image is. Whoever has a message and the extractor can forge the mark: keep a registry as
you would a private key. Only ids, never messages, go into images, tables and errors.
"""

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from medsign_lite.checkpoints import load_checkpoint, read_config
from medsign_lite.detection import threshold
from medsign_lite.files import whole_file

FORMAT = "medsign_lite keys"
VERSION = 1
SHIPPED = Path(__file__).parents[1] / "weights" / "keys.json"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Key:
    """One message and what is known of it."""

    id: str  # up to 64 letters, digits, dots, dashes and underscores
    message: str  # "0" and "1", first bit first
    modality: str = ""  # "chest", "fundus", ...
    decoder: str = ""  # folder that writes it, relative to the registry's; empty: not at hand
    note: str = ""

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            if not isinstance(getattr(self, name), str):
                kind = type(getattr(self, name)).__name__
                raise ValueError(f"key: expected text as its {name}, got {kind}")
        if not _ID.fullmatch(self.id):
            raise ValueError(
                "key: expected an id of 1 to 64 letters, digits, dots, dashes and underscores, "
                f"got {self.id!r}"
            )
        if not self.message or set(self.message) - {"0", "1"}:
            raise ValueError(f"key {self.id!r}: expected a message of 0 and 1, got something else")
        if Path(self.decoder).is_absolute():
            raise ValueError(
                f"key {self.id!r}: expected its decoder's folder relative to the registry's, got "
                "an absolute path"
            )

    def __repr__(self) -> str:  # a message in a log is a message given away
        return f"Key(id={self.id!r}, bits={len(self.message)}, modality={self.modality!r})"


@dataclass(frozen=True, kw_only=True)
class Registry:
    """Keys of one length that can be told apart; `add` returns a longer one.

    Raises:
        ValueError: if an id comes twice, a message has not `bits` bits, or two messages differ in
            fewer than `minimum_distance(bits)` of them.
    """

    bits: int
    keys: tuple[Key, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int):
            raise ValueError(f"registry: expected a number of bits, got {self.bits!r}")
        least = minimum_distance(self.bits)
        for place, key in enumerate(self.keys):
            if len(key.message) != self.bits:
                raise ValueError(
                    f"key {key.id!r}: expected a message of {self.bits} bits, "
                    f"got {len(key.message)}"
                )
            for earlier in self.keys[:place]:
                if earlier.id == key.id:
                    raise ValueError(f"the id {key.id!r} is in the registry already")
                distance = hamming_distance(earlier.message, key.message)
                if distance < least:
                    raise ValueError(
                        f"keys {earlier.id!r} and {key.id!r}: expected messages that differ in at "
                        f"least {least} of {self.bits} bits, these differ in {distance}: images "
                        "of one could be taken for the other's"
                    )

    def add(self, key: Key) -> "Registry":
        """This registry with one key more; this one stays as it is."""
        return Registry(bits=self.bits, keys=(*self.keys, key))

    def find(self, key_id: str) -> Key:
        """The key of this id.

        Raises:
            ValueError: if there is none; it names those there are.
        """
        for key in self.keys:
            if key.id == key_id:
                return key
        known = ", ".join(key.id for key in self.keys) or "none"
        raise ValueError(f"key {key_id!r} is not in the registry; it has: {known}")


def hamming_distance(first: str, second: str) -> int:
    """In how many places two messages, "0" and "1" and of one length, differ."""
    if len(first) != len(second):
        raise ValueError(f"expected messages of one length, got {len(first)} and {len(second)}")
    return (int(first, 2) ^ int(second, 2)).bit_count()


def minimum_distance(bits: int) -> int:
    """Fewest bits in which two messages of a registry must differ, for detection at 1e-6.

    By counting, an image may have `bits - threshold` bits wrong and still be detected. With more
    than twice as many between two messages, an image detected as one cannot match the other as
    well. Further keys raise the threshold, so what holds for one key holds for many. Of two random
    messages of 48 bits, 3 pairs in 1000 are closer.

    Returns:
        15 for 48 bits, where 41 must match.

    Raises:
        ValueError: if so few bits cannot reach the rate at all, fewer than 20.
    """
    return 2 * (bits - threshold(bits, 1e-6)) + 1


def read_registry(path: str | Path) -> Registry:
    """Read a registry file, and refuse what is not exactly that.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON, of another format or version, lacks a field or has one too
            many, or if `Key` or `Registry` refuse what it holds.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"registry {path} does not exist")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        raise ValueError(
            f"registry {path}: expected JSON, got {path.stat().st_size} bytes that are not"
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f'registry {path}: expected JSON with "format": "{FORMAT}"')
    if document.get("version") != VERSION:
        raise ValueError(
            f"registry {path}: expected version {VERSION}, got {document.get('version')!r}"
        )
    try:
        _check_names(document, {"format", "version", "bits", "keys"}, "the file")
        if not isinstance(document["keys"], list):
            raise ValueError(f"expected a list of keys, got {type(document['keys']).__name__}")
        for place, entry in enumerate(document["keys"], start=1):
            if not isinstance(entry, dict):
                raise ValueError(f"key {place}: expected an object, got {type(entry).__name__}")
            _check_names(entry, {field.name for field in fields(Key)}, f"key {place}")
        keys = tuple(Key(**entry) for entry in document["keys"])
        return Registry(bits=document["bits"], keys=keys)
    except ValueError as error:
        raise ValueError(f"registry {path}: {error}") from error


def _check_names(entry: dict, expected: set[str], what: str) -> None:
    if set(entry) != expected:
        raise ValueError(
            f"{what}: missing {sorted(expected - set(entry))}, "
            f"unexpected {sorted(set(entry) - expected)}"
        )


def write_registry(path: str | Path, registry: Registry, *, private: bool = True) -> Path:
    """Write a registry as JSON, whole or not at all (see `whole_file`).

    private: for its owner alone. Whoever shares one with a group sets its rights again after each
        key that is added.
    """
    keys = [asdict(key) for key in registry.keys]
    document = {"format": FORMAT, "version": VERSION, "bits": registry.bits, "keys": keys}
    with whole_file(path, private=private) as file:
        file.write((json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
    return Path(path)


def registry_of_decoders(folder: str | Path, *, note: str = "") -> Registry:
    """A key for each watermarking decoder in a folder of weights, from its configuration.

    Args:
        folder: holds one folder per decoder, among others; `write_registry` the result into it.
        note: of every key.

    Returns:
        Keys named after their folders, without "decoder_".

    Raises:
        ValueError: if there is no decoder, or one without a message.
    """
    keys = []
    for path in sorted(Path(folder).glob("*/config.json")):
        if read_config(path).get("kind") == "decoder":
            message, modality = decoder_message(path.parent)
            name = path.parent.name
            keys.append(Key(id=name.removeprefix("decoder_"), message=message, modality=modality,
                            decoder=name, note=note))  # fmt: skip
    if not keys:
        raise ValueError(f"{folder}: expected folders of decoders, found none")
    return Registry(bits=len(keys[0].message), keys=tuple(keys))


def decoder_message(folder: str | Path) -> tuple[str, str]:
    """(message, modality) of a decoder's configuration; the modality may be empty.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is no decoder (see `load_checkpoint`) or its configuration has no message.
    """
    _, config = load_checkpoint(folder, kind="decoder")
    message = config.get("message")
    if not isinstance(message, str) or not message or set(message) - {"0", "1"}:
        raise ValueError(f"decoder {folder}: its configuration names no message of 0 and 1")
    return message, str(config.get("modality", ""))
