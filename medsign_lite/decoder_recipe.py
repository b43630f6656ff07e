"""How `make weights` makes MedSign's decoders: options of `medsign_lite.finetuning`.

The factor of all image losses begins so low that the message gets in, and grows as soon as nearly
all bits are read under attack. Preservation weighs hundreds of times as much as in the paper: less
of it shrinks the mark alike everywhere. Evenness keeps the mark from gathering into speckles, and
from colour where the image has none.

The shipped chest decoder was made so. On fundus photographs this spares the finding and reads well,
and falls short of what is asked of SSIM; a preservation of 3,000,000 does it the other way round.
The shipped decoder is an older one: the model card says how it was made.
"""

MESSAGES = {"chest": "1", "fundus": "2"}  # seeds of the messages
SAMPLES = 1504  # generated images each decoder is fine-tuned on
STEPS = {"chest": 4800, "fundus": 5600}  # some 95 and 120 minutes of one core
_SHARED = (
    *("--optimiser", "muon", "--learning-rate", "1e-3", "--batch-size", "4", "--reads", "4"),
    *("--masking", "0", "--evenness", "0.25", "--temperature", "0.7"),
)
_OF_MODALITY = {
    "chest": (
        *("--preservation", "1200000", "--structure", "40"),
        *("--first-quality", "0.05", "--read-well", "0.98"),
        *("--attacks", "none", "crop", "resize", *["brightness"] * 2),
        *(*["rotation"] * 4, *["jpeg"] * 4),
    ),
    # Mirrored: from 1,440 samples alone it learns by heart which places to spare.
    "fundus": (
        *("--preservation", "8000000", "--structure", "50", "--mirrored"),
        *("--first-quality", "0.03", "--read-well", "0.955"),
        *("--attacks", "none", "brightness", "crop", *["resize"] * 2),
        *(*["rotation"] * 6, *["jpeg"] * 4),
    ),
}


def recipe(modality: str) -> tuple[str, ...]:
    """Everything but the message, the map and the number of steps."""
    return (*_SHARED, *_OF_MODALITY[modality])
