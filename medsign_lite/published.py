"""Figures that the MedSign paper reports (Kim et al., MICCAI 2025), to stand beside ours.

Measured by its authors on MIMIC-CXR-JPG ("chest") and OIA-ODIR ("fundus") at 512 px. WAM carries
32 bits, all others 48. Copied as printed; one mean (fundus, WAM) differs from that of its columns.
"""

TABLE1_COLUMNS = (
    "psnr", "ssim", "none", "brightness", "crop", "jpeg", "rotation", "resize", "mean",
)  # fmt: skip

_TABLE1 = {
    "chest": {
        "DCT-DWT": (35.17, 0.89, 1.00, 0.51, 0.50, 0.52, 0.51, 0.53, 0.59),
        "SSL Watermark": (36.20, 0.89, 0.93, 0.66, 0.84, 0.71, 0.85, 0.87, 0.81),
        "WAM (32 bits)": (35.12, 0.93, 1.00, 1.00, 0.99, 0.57, 0.46, 1.00, 0.83),
        "Stable Signature": (33.24, 0.92, 0.99, 0.99, 0.99, 0.70, 0.71, 0.95, 0.89),
        "MedSign": (39.71, 0.96, 1.00, 1.00, 1.00, 0.74, 0.96, 0.97, 0.95),
    },
    "fundus": {
        "DCT-DWT": (35.64, 0.90, 0.81, 0.49, 0.49, 0.51, 0.50, 0.80, 0.60),
        "SSL Watermark": (36.37, 0.89, 0.92, 0.84, 0.84, 0.71, 0.86, 0.89, 0.84),
        "WAM (32 bits)": (31.35, 0.94, 1.00, 1.00, 0.79, 0.72, 0.45, 1.00, 0.85),
        "Stable Signature": (30.20, 0.79, 0.97, 0.97, 0.95, 0.71, 0.66, 0.91, 0.86),
        "MedSign": (40.81, 0.94, 1.00, 0.95, 0.99, 0.78, 0.95, 0.97, 0.94),
    },
}


def table1(modality: str) -> list[dict]:
    """The paper's Table 1 for "chest" or "fundus": PSNR (dB), SSIM, bit accuracy per attack.

    Returns:
        One dict per method with the keys method and `TABLE1_COLUMNS`.
    """
    if modality not in _TABLE1:
        raise ValueError(f"modality must be one of {', '.join(_TABLE1)}, got {modality!r}")
    return [
        {"method": method, **dict(zip(TABLE1_COLUMNS, row, strict=True))}
        for method, row in _TABLE1[modality].items()
    ]


_TABLE2_COLUMNS = (
    "pneumonia", "pneumothorax", "atelectasis", "edema", "cardiomegaly", "effusion", "mean",
    "bit_accuracy", "psnr",
)  # fmt: skip
_TABLE2 = {
    "stable_signature": (13.18, 2.76, 1.99, 7.87, 2.99, 1.70, 5.08, 0.89, 33.24),
    "medsign": (1.83, 0.36, 0.33, 0.85, 0.02, 0.15, 0.59, 0.95, 39.71),
    "without_aas": (1.68, 0.45, 0.23, 0.73, 0.06, 0.13, 0.55, 0.94, 38.65),
    "without_cas": (1.75, 0.38, 0.25, 0.75, 0.06, 0.16, 0.56, 0.92, 39.51),
    "without_tv": (1.79, 0.47, 0.37, 0.84, 0.11, 0.14, 0.62, 0.95, 37.75),
    "without_preservation": (4.20, 1.91, 2.27, 2.31, 1.23, 1.89, 2.30, 0.94, 35.02),
}


def table2() -> dict[str, dict[str, float]]:
    """The paper's Table 2, of radiographs alone, by the name of our row.

    Returns:
        For each: |change of the probability| x 100 of each of `data.CHEST_FINDINGS` and "mean";
        "bit_accuracy", the mean over the attacks; "psnr" in dB.
    """
    return {row: dict(zip(_TABLE2_COLUMNS, values, strict=True)) for row, values in _TABLE2.items()}
