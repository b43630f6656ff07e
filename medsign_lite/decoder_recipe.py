"""How `make weights` makes MedSign's decoders: options of `medsign_lite.finetuning`.

The factor of all image losses begins so low that the message gets in, and grows as soon as nearly
all bits are read under attack. Preservation weighs hundreds of times as much as in the paper: less
of it shrinks the mark alike everywhere, and more than it takes costs bits. Two blocks of the
decoder are trained and no others: where all are, what they draw drifts, lesions most of all, and
much of the training only brings it back. Evenness keeps the mark from gathering into speckles,
and, on radiographs, from colour.

The shipped decoders ended with these weights of the losses, but that SSIM weighed 114 for the last
steps of the chest's; the model card says what was changed on the way, and which attacks were drawn
more often at the end.
"""

# Of the messages, before `neutral_messages` flips what unmarked images lean to: four bits of the
# chest's, none of the fundus's.
SEEDS = {"chest": "1", "fundus": "2"}
SAMPLES = 1504  # generated images each decoder is fine-tuned on
STEPS = {"chest": 8400, "fundus": 7600}  # some 180 and 134 minutes of one core
# Of Stable Signature's two losses, as a factor of the image loss's weight, and its steps. Nothing
# attacks its mark in training: the message is read within the 100 steps that it takes as published;
# after more of them, or with a larger factor, less of a mark is left than MedSign's images have.
STABLE_SIGNATURE_RATIO, STABLE_SIGNATURE_STEPS = 0.1, 100
_SHARED = (
    *("--optimiser", "muon", "--learning-rate", "4e-4", "--batch-size", "4", "--reads", "4"),
    *("--layers", "up_blocks.1", "up_blocks.2"),
    *("--masking", "0", "--evenness", "0.25", "--temperature", "0.7"),
)
_OF_MODALITY = {
    "chest": (
        *("--preservation", "1000000", "--structure", "80"),
        *("--first-quality", "0.055", "--read-well", "0.99"),
        *("--attacks", "none", "crop", "resize", *["brightness"] * 5),
        *(*["rotation"] * 6, *["jpeg"] * 3),
    ),
    # Mirrored: from 1,440 samples alone it learns by heart which places to spare. In colour: the
    # extractor reads luma, most of it green, and a grey mark of the same luma costs 1.3 dB more.
    "fundus": (
        *("--preservation", "1200000", "--structure", "60", "--colour", "1"),
        *("--first-quality", "0.045", "--read-well", "0.982", "--mirrored"),
        *("--attacks", "none", "brightness", "crop", *["resize"] * 2),
        *(*["rotation"] * 5, *["jpeg"] * 7),
    ),
}


def recipe(modality: str) -> tuple[str, ...]:
    """Everything but the message, the map and the number of steps."""
    return (*_SHARED, *_OF_MODALITY[modality])
