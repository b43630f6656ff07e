"""The command `medsign-lite`: what it takes. What it does is in one module per command.

Those load torch and are imported once they are needed, so that asking for help costs nothing.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from medsign_lite import __version__

WEIGHTS = Path(__file__).parents[1] / "weights"

DETECT = """\
Say of every image whether it carries a watermark, and whose.

Takes PNG (8 and 16 bits), JPEG and DICOM. The table shows how many bits match the best key,
the p-value (chance of as good a match in an unmarked image, over all keys together) and the
decision. With n keys each is tested at 1/n of the false-positive rate, so that the rate holds
for all of them together.
"""
DETECT_END = """\
exit status:
  0  every image could be read, whatever was found in it
  1  some image could not; its row says why
  2  the command could not be carried out: a wrong option, key, extractor or folder

examples:
  medsign-lite detect scan.png
  medsign-lite detect study/ --csv found.csv
  medsign-lite detect study/ --keys our_keys.json --extractor our_extractor/
"""
GENERATE = """\
Draw images from prompts with a watermarking decoder.

Each image is an 8-bit PNG named after its seed, with a JSON file beside it. Both say that it is
synthetic and name the model and decoder (with hashes), the key's id, seed, steps and guidance;
never the message, with which anyone could forge the mark, and the prompt only if asked for: it
may be a patient's report. Each file is read back; no file is overwritten.
"""
GENERATE_END = """\
exit status:
  0  every image was written and reads back as its key's
  1  some image does not read back; it is named
  2  the command could not be carried out: a wrong option, key, model, decoder or folder

examples:
  medsign-lite generate --prompt "Large left pleural effusion." --key chest --out drawn/
  medsign-lite generate --prompts reports.txt --count 4 --decoder my_decoder/ --out drawn/
"""
KEYS = """\
A registry is a JSON file of keys: messages with an id, a modality, the decoder that writes them
and a note. Whoever has a message and the extractor can forge the mark, so keep a registry as you
would a private key. The bundled one is public: it is there to learn and test with.
"""
ADD = """\
Add a key to a registry, which is made if there is none. Refused are an id that is there already
and a message too close to another's: two must differ in so many bits that by counting an image
just good enough for one cannot match the other as well (15 of 48).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 if the command could not be carried out."""
    options = build_parser().parse_args(arguments)
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their notes are for programmers
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    module, function = options.command
    run = getattr(import_module(f"medsign_lite.deployment.{module}"), function)
    try:
        return run(options)
    except KeyboardInterrupt:
        return 130  # as a shell has it
    except BrokenPipeError:  # as by `| head`: nobody reads on, and that is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError, RuntimeError, ModuleNotFoundError) as error:
        print(f"{options.prog}: error: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options and help."""
    parser = argparse.ArgumentParser(
        prog="medsign-lite",
        description="Watermarks of generated medical images: find and write them, keep the keys.",
        epilog="medsign-lite COMMAND --help says more. The bundled model draws phantoms: it "
        "teaches and tests the method, and is no medical device.",
    )
    parser.add_argument("--version", action="version", version=f"medsign-lite {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_detect(commands)
    _add_generate(commands)
    _add_keys(commands)
    return parser


def _command(
    commands, name: str, module: str, function: str, *, summary: str, description: str = "",
    epilog: str = "",
) -> argparse.ArgumentParser:  # fmt: skip
    parser = commands.add_parser(
        name,
        help=summary,
        description=description or summary,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=(module, function), prog=parser.prog)
    return parser


def _add_detect(commands) -> None:
    parser = _command(
        commands, "detect", "detect_command", "run", summary="find watermarks in images",
        description=DETECT, epilog=DETECT_END,
    )  # fmt: skip
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER",
        help="files, and folders, which are searched at every depth",
    )  # fmt: skip
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write a CSV file instead of printing a table"
    )
    parser.add_argument(
        "--hide-names", action="store_true",
        help="number the images in their sorted order: a file's name may be a patient's",
    )  # fmt: skip
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument(
        "--keys", type=Path, default=WEIGHTS / "keys.json", metavar="FILE",
        help="registry of the keys to look for (default: the bundled one)",
    )  # fmt: skip
    whose.add_argument(
        "--message", metavar="BITS",
        help="look for this message only, for example 0110...; others on the machine can see a "
        "command line, so that a registry keeps it safer",
    )  # fmt: skip
    _add_reading(parser)


def _add_generate(commands) -> None:
    parser = _command(
        commands, "generate", "generate_command", "run", summary="draw watermarked images",
        description=GENERATE, epilog=GENERATE_END,
    )  # fmt: skip
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="may be given several times"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="text file, one on each line")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="made if there is none"
    )
    parser.add_argument(
        "--pipeline", type=Path, default=WEIGHTS / "pipeline", metavar="FOLDER",
        help="diffusers folder (default: the bundled model)",
    )  # fmt: skip
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--key", metavar="ID", help="key of the registry that names its decoder")
    whose.add_argument("--decoder", type=Path, metavar="FOLDER", help="watermarking decoder")
    parser.add_argument(
        "--keys", type=Path, default=WEIGHTS / "keys.json", metavar="FILE",
        help="registry that has the key, or names the decoder's (default: the bundled one)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=_number(int, 0), default=0, metavar="N",
        help="of the first image; the others count on from there (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--count", type=_number(int, 1), default=1, metavar="N",
        help="images of each prompt (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=_number(int, 1), default=25, metavar="N", help="of sampling (default: 25)"
    )
    parser.add_argument(
        "--guidance", type=_number(float, 0), default=3.0, metavar="SCALE",
        help="classifier-free guidance; 1 is none (default: 3)",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=_number(int, 1), default=8, metavar="N",
        help="images sampled at a time (default: 8)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-prompt", action="store_true", help="write the prompts into the files, too"
    )
    _add_reading(parser)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--extractor", type=Path, default=WEIGHTS / "extractor", metavar="FOLDER",
        help="network that reads the bits (default: the bundled one)",
    )  # fmt: skip
    parser.add_argument(
        "--false-positive-rate", type=float, default=1e-6, metavar="RATE",
        help="share of unmarked images that may be called marked (default: 1e-6)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")


def _add_keys(commands) -> None:
    parser = commands.add_parser("keys", help="list, add and make keys", description=KEYS)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    several = _command(
        actions, "list", "keys_command", "list_keys",
        summary="print the keys of a registry, without their messages",
    )  # fmt: skip
    several.add_argument(
        "--keys", type=Path, default=WEIGHTS / "keys.json", metavar="FILE",
        help="default: the bundled registry",
    )  # fmt: skip
    add = _command(
        actions, "add", "keys_command", "add_key", summary="add a key to a registry",
        description=ADD,
    )  # fmt: skip
    add.add_argument("--keys", type=Path, required=True, metavar="FILE", help="the registry")
    add.add_argument("--id", required=True, help="letters, digits, dots, dashes, underscores")
    whence = add.add_mutually_exclusive_group(required=True)
    whence.add_argument("--decoder", type=Path, metavar="FOLDER", help="decoder that writes it")
    whence.add_argument(
        "--message", metavar="BITS",
        help="of a decoder that is not at hand; - reads the bits from standard input, where others "
        "on the machine cannot see them",
    )  # fmt: skip
    add.add_argument("--modality", default="", help="default: as the decoder says")
    add.add_argument("--note", default="", metavar="TEXT", help="whose it is, what for")
    make = _command(
        actions, "make", "keys_command", "make_registry",
        summary="write keys.json into a folder of weights, with a key for each decoder in it",
    )  # fmt: skip
    make.add_argument("--weights", type=Path, required=True, metavar="FOLDER")
    make.add_argument("--note", default="", metavar="TEXT", help="of every key")
    make.add_argument("--replace", action="store_true", help="write over an earlier one")


def _number(kind: Callable[[str], float], least: int) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"expected at least {least}, got {text}")
        return value

    read.__name__ = "whole number" if kind is int else "number"  # argparse names it in its errors
    return read


if __name__ == "__main__":
    sys.exit(main())
