"""`medsign-lite keys`: list a registry, add a key to it, or make one from decoders."""

import os
import sys
from argparse import Namespace
from pathlib import Path

from medsign_lite.deployment.keys import (
    Key,
    Registry,
    decoder_message,
    read_registry,
    registry_of_decoders,
    write_registry,
)
from medsign_lite.messages import ungroup


def list_keys(options: Namespace) -> int:
    """Print every key but its message."""
    registry = read_registry(options.keys)
    rows = [("id", "modality", "decoder", "note")]
    rows += [(key.id, key.modality, key.decoder, key.note) for key in registry.keys]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        print("  ".join([*cells, row[3]]).rstrip())
    return 0


def add_key(options: Namespace) -> int:
    """Add a key to a registry file, which is made if there is none.

    The message "-" is read from standard input: others on the machine can see a command line.

    Raises:
        OSError, ValueError: if the key is refused or the file cannot be read or written.
    """
    path = options.keys
    message, modality = options.message, options.modality
    if options.decoder is not None:
        message, found = decoder_message(options.decoder)
        modality = modality or found
    message = ungroup(sys.stdin.read() if message == "-" else message)
    key = Key(
        id=options.id,
        message=message,
        modality=modality,
        decoder=_relative(options.decoder, path.parent) if options.decoder else "",
        note=options.note,
    )
    registry = read_registry(path) if path.exists() else Registry(bits=len(message))
    registry = registry.add(key)
    write_registry(path, registry)
    print(f"{path}: added {key.id!r}, keys: {len(registry.keys)}")
    return 0


def _relative(decoder: Path, folder: Path) -> str:
    return Path(os.path.relpath(decoder.resolve(), folder.resolve())).as_posix()


def make_registry(options: Namespace) -> int:
    """Write a registry of the decoders in a folder of weights into that folder.

    Raises:
        FileExistsError: if there is one, unless it is to be replaced.
        OSError, ValueError: if there is no decoder or the file cannot be written.
    """
    path = options.weights / "keys.json"
    if path.exists() and not options.replace:
        raise FileExistsError(f"{path} exists already: --replace writes it anew")
    registry = registry_of_decoders(options.weights, note=options.note)
    write_registry(path, registry)
    print(f"{path}: {', '.join(key.id for key in registry.keys)}")
    return 0
