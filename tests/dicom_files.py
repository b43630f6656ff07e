"""DICOM files with made-up pixels and a made-up patient, for tests."""

from pathlib import Path

import numpy as np
import pytest

PATIENT = ("Roe^Jane", "MRN-4711", "1.2.3.4")  # name, number, and the image's own number


def write_dicom(path: Path, pixels: np.ndarray, *, syntax: str | None = None, **header) -> Path:
    """Pixels (H, W) or (H, W, 3) of 8 or 16 bits, with whatever the header shall say; not
    compressed, unless another transfer syntax is named. Skips the test without pydicom."""
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs pydicom")
    file = pydicom.Dataset()
    file.PatientName, file.PatientID, file.SOPInstanceUID = PATIENT
    file.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    file.Rows, file.Columns = pixels.shape[:2]
    file.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    file.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        file.PlanarConfiguration = 0
    file.BitsAllocated = file.BitsStored = 8 * pixels.dtype.itemsize
    file.HighBit = file.BitsStored - 1
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    file.PixelData = pixels.tobytes()
    with pydicom.config.disable_value_validation():  # what breaks the standard is written, too
        for name, value in header.items():
            setattr(file, name, value)
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax or pydicom.uid.ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return path
