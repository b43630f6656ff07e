"""How MedSign's decoders are made: options of `medsign_lite.finetuning`, in two parts.

The first part gets the message in under attack, from the original decoder. The last goes on at a
small rate and buys back the finding and the image with what is read too well: preservation weighs
a hundred to 750 times as much as in the paper, and the factor of all image losses may fall so low
that the bits stay in.
"""

from medsign_lite.finetuning import PRESETS

_FIRST_ATTACKS = ("none", "brightness", "crop", "resize", *["rotation"] * 2, *["jpeg"] * 4)
_LAST = {
    # Brightness doubled leaves white where it was bright: it is drawn most often.
    "chest": (
        *("--preservation", "400000", "--structure", "20", "--first-quality", "0.1"),
        *("--read-well", "0.970", "--learning-rate", "1e-4"),
        *("--attacks", "none", "crop", "resize"),
        *(*["brightness"] * 6, *["rotation"] * 2, *["jpeg"] * 3),
    ),
    # Mirrored: from 1,440 samples alone it learns by heart which places to spare.
    "fundus": (
        *("--preservation", "2400000", "--structure", "44", "--first-quality", "0.03"),
        *("--read-well", "0.974", "--learning-rate", "8e-5", "--mirrored"),
        *("--attacks", "none", "brightness", "crop", "resize"),
        *(*["rotation"] * 6, *["jpeg"] * 3),
    ),
}


def first_part(modality: str) -> tuple[str, ...]:
    """Options of the part that starts from the original decoder."""
    preservation = 16 * PRESETS[modality]().preservation
    options = ("--masking", "0", "--preservation", f"{preservation:g}")
    return (*options, "--attacks", *_FIRST_ATTACKS)


def last_part(modality: str) -> tuple[str, ...]:
    """Options of the part that goes on from there (`--start`)."""
    return ("--masking", "0", *_LAST[modality])
