"""DICOM files with made-up pixels: read, and as the two callers take them."""

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from data_prep.folder import prepare_folder
from data_prep.image_reading import read_pixels
from data_prep.pixels import Unusable
from medsign_lite.data import read_manifest
from medsign_lite.deployment.dicom import PIXEL_ELEMENTS, is_dicom, read_dicom
from medsign_lite.deployment.image_files import load_image_file
from tests.dicom_files import PATIENT, write_dicom
from tests.source_folders import truncate, words_written

pydicom = pytest.importorskip("pydicom", reason="DICOM needs pydicom")
RAMP = np.tile(np.arange(0, 3200, 100, dtype=np.uint16), (32, 1))  # (32, 32), 0 to 3100
TWELVE_BITS = {"BitsStored": 12, "HighBit": 11}


@pytest.fixture
def deep():
    """(8, 10) uint16: 12 bits, from 0 to 4095."""
    values = np.random.default_rng(0).integers(0, 4096, (8, 10), dtype=np.uint16)
    values[0, :2] = 0, 4095
    return values


def assert_shown(path, expected):
    shown = read_dicom(path)
    assert shown.dtype == np.float64
    np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-6)


def test_is_dicom_goes_by_the_ending_or_the_content(tmp_path):
    assert is_dicom(write_dicom(tmp_path / "IM0001", RAMP))
    assert is_dicom(tmp_path / "absent.DCM") and is_dicom(tmp_path / "absent.dicom")
    (tmp_path / "notes").write_bytes(b"DICM")
    assert not is_dicom(tmp_path / "notes") and not is_dicom(tmp_path / "absent")


def test_read_dicom_windows_by_hand(tmp_path, deep):
    # Width 101 about 1000: PS3.3 C.11.2.1.2 maps 949.5 to 0, 999.5 to a half, 1049.5 to 1.
    deep[1, :4] = 949, 950, 1000, 1050
    path = write_dicom(tmp_path / "a.dcm", deep, WindowCenter=1000, WindowWidth=101, **TWELVE_BITS)
    got = read_dicom(path)
    assert got[1, :4].tolist() == pytest.approx([0, 0.005, 0.505, 1])
    assert got[0, :2].tolist() == [0, 1]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("slope", [1, 2])
def test_read_dicom_windows_as_pydicom_does(tmp_path, deep, function, slope):
    path = write_dicom(tmp_path / "a.dcm", deep, RescaleSlope=slope, RescaleIntercept=-100,
                       WindowCenter=[1700, 3], WindowWidth=[2000, 5], VOILUTFunction=function,
                       **TWELVE_BITS)  # fmt: skip
    file = pydicom.dcmread(path)
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    shown = apply_voi_lut(apply_modality_lut(file.pixel_array, file), file)
    assert_shown(path, (shown + 100) / (4095 * slope))  # pydicom spreads it over the values' range


def test_read_dicom_rescales_before_the_window(tmp_path):
    # Values 2 x - 1000; the window from 1000 to 3000 is x from 1000 to 2000.
    path = write_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope="2", RescaleIntercept="-1000",
                       WindowCenter="2000", WindowWidth="2000")  # fmt: skip
    row = read_dicom(path)[0]
    assert not row[:10].any() and (row[21:] == 1).all()
    assert row[15] == pytest.approx(0.5, abs=0.001) and (np.diff(row[10:21]) > 0).all()


def test_read_dicom_of_a_window_of_one_value_is_black_and_white(tmp_path, deep):
    deep[1, :2] = 999, 1000
    got = read_dicom(write_dicom(tmp_path / "a.dcm", deep, WindowCenter=1000, WindowWidth=1))
    assert got[1, :2].tolist() == [0, 1] and set(np.unique(got)) == {0, 1}


def test_read_dicom_of_a_narrow_sigmoid_is_quiet_far_from_it(tmp_path, deep):
    path = write_dicom(tmp_path / "a.dcm", deep, WindowCenter=4000, WindowWidth=1,
                       VOILUTFunction="SIGMOID")  # fmt: skip
    assert read_dicom(path)[0, :2].tolist() == [0, 1]


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}])
def test_read_dicom_uses_the_voi_table_without_a_window(tmp_path, deep, window):
    table = pydicom.Dataset()
    values = np.arange(4096, dtype=np.uint16)[::-1]
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], values.tobytes()
    path = write_dicom(tmp_path / "a.dcm", deep, VOILUTSequence=[table], **TWELVE_BITS, **window)
    assert_shown(path, deep / 4095 if window else (4095 - deep) / 4095)


def test_read_dicom_without_a_window_takes_the_range(tmp_path, deep):
    deep[deep < 100] = 100
    assert_shown(write_dicom(tmp_path / "a.dcm", deep), (deep - 100.0) / 3995)
    signed = deep.astype(np.int16) - 1000
    assert_shown(write_dicom(tmp_path / "b.dcm", signed), (deep - 100.0) / 3995)
    flat = np.full((4, 4), 7, np.uint16)
    assert_shown(write_dicom(tmp_path / "c.dcm", flat), flat * 0.0)
    rescaled = write_dicom(tmp_path / "d.dcm", (deep >> 4).astype(np.uint8), RescaleSlope=1,
                           RescaleIntercept=-6)  # fmt: skip
    assert_shown(rescaled, ((deep >> 4) - 6.0) / 249)


@pytest.mark.parametrize("slope, intercept", [(1, 0), ("1.0", "0.0"), ("1", "-0")])
def test_read_dicom_takes_the_identity_for_no_rescaling(tmp_path, deep, slope, intercept):
    grey = (deep >> 4).clip(20, 200).astype(np.uint8)
    header = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    assert_shown(write_dicom(tmp_path / "a.dcm", grey, **header), grey / 255)
    deep[deep < 100] = 100  # deeper pixels take the range found, as without it
    assert_shown(write_dicom(tmp_path / "b.dcm", deep, **header), (deep - 100.0) / 3995)


def ramp_with_padding(padding):
    """(32, 32) uint16 from 1000 to 4100 beside eight columns of padding, and where that is."""
    where = np.zeros(RAMP.shape, bool)
    where[:, 12:20] = True
    return np.where(where, padding, RAMP + 1000).astype(np.uint16), where


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    "padding, header",
    [
        (0, {"PixelPaddingValue": 0}),
        (65535, {"PixelPaddingValue": 65535}),
        (40, {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 50}),
        (50, {"PixelPaddingValue": 50, "PixelPaddingRangeLimit": 0}),
    ],
    ids=["low", "high", "range", "turned-range"],
)
def test_read_dicom_leaves_padding_out_of_the_range_and_black(
    tmp_path, photometric, padding, header
):
    pixels, where = ramp_with_padding(padding)
    path = write_dicom(tmp_path / "a.dcm", pixels, PhotometricInterpretation=photometric, **header)
    expected = RAMP / 3100 if photometric == "MONOCHROME2" else 1 - RAMP / 3100
    assert_shown(path, np.where(where, 0, expected))


def test_read_dicom_knows_padding_by_its_stored_value(tmp_path):
    # Stored -2000 of signed pixels; many files say the same bits as an unsigned 63536.
    pixels, where = ramp_with_padding(0)
    signed = np.where(where, -2000, pixels.astype(np.int16) - 1024).astype(np.int16)
    expected = np.where(where, 0, RAMP / 3100)
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -500}
    for header in ({}, rescaled):
        path = write_dicom(tmp_path / "a.dcm", signed, PixelPaddingValue=-2000, **header)
        assert_shown(path, expected)
    file = pydicom.dcmread(path)
    file["PixelPaddingValue"] = pydicom.DataElement("PixelPaddingValue", "US", 63536)
    file.save_as(path)
    assert_shown(path, expected)
    implicit = pydicom.uid.ImplicitVRLittleEndian
    path = write_dicom(tmp_path / "b.dcm", signed, syntax=implicit, PixelPaddingValue=-2000)
    assert_shown(path, expected)


def test_read_dicom_of_padding_in_a_window_and_in_8_bits(tmp_path):
    pixels, where = ramp_with_padding(65535)
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "PixelPaddingValue": 65535}
    path = write_dicom(tmp_path / "a.dcm", pixels, **window)
    assert_shown(path, np.where(where, 0, pixels / 4095.0).clip(0, 1))
    grey = np.where(where, 255, RAMP // 100).astype(np.uint8)
    path = write_dicom(tmp_path / "b.dcm", grey, PixelPaddingValue=255)
    assert_shown(path, np.where(where, 0, grey / 255))
    path = write_dicom(tmp_path / "c.dcm", grey, PixelPaddingValue=256)  # which 8 bits cannot hold
    assert_shown(path, grey / 255)


def test_read_dicom_of_nothing_but_padding_is_black(tmp_path, deep):
    path = write_dicom(tmp_path / "a.dcm", deep * 0 + 7, PixelPaddingValue=7)
    assert not read_dicom(path).any()
    colour = np.full((4, 4, 3), 9, np.uint8)  # which has no padding
    assert_shown(write_dicom(tmp_path / "b.dcm", colour, PixelPaddingValue=9), colour / 255)


def test_read_dicom_of_8_bits_loses_nothing(tmp_path):
    grey = np.random.default_rng(0).integers(20, 200, (6, 4), dtype=np.uint8)
    assert_shown(write_dicom(tmp_path / "a.dcm", grey), grey / 255)
    assert np.array_equal(read_pixels(tmp_path / "a.dcm"), grey)
    got = load_image_file(tmp_path / "a.dcm")
    assert got.dtype == torch.float32 and got.equal(torch.from_numpy(grey).float().div(255)
                                                    .expand(3, 6, 4))  # fmt: skip


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_read_dicom_keeps_colour(tmp_path, kind):
    highest = np.iinfo(kind).max
    colour = np.random.default_rng(0).integers(0, highest, (32, 24, 3), dtype=kind)
    path = write_dicom(tmp_path / "a.dcm", colour)
    assert_shown(path, colour / highest)
    image = read_pixels(path)
    assert image.mode == "RGB" and image.size == (24, 32)
    assert np.array_equal(image, np.round(colour * (255 / highest)))
    got = load_image_file(path).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, colour / highest, atol=1e-6)


def test_read_dicom_inverts_monochrome1(tmp_path, deep):
    header = {"PhotometricInterpretation": "MONOCHROME1", **TWELVE_BITS}
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    path = write_dicom(tmp_path / "a.dcm", deep, **header, **window)
    assert_shown(path, 1 - deep / 4095)
    path = write_dicom(tmp_path / "b.dcm", RAMP.max() - RAMP, **header)  # without a window
    assert_shown(path, RAMP / 3100)


def test_read_dicom_takes_one_frame_where_more_are_than_it_says(tmp_path, deep):
    path = write_dicom(tmp_path / "a.dcm", deep, Rows=4, WindowCenter=2048, WindowWidth=4096)
    assert_shown(path, deep[:4] / 4095)


@pytest.mark.parametrize(
    "header, match",
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, ": expected DICOM in grey or RGB"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_422"}, ": expected DICOM in grey or RGB"),
        ({"NumberOfFrames": 2, "Rows": 4}, ": expected DICOM with one frame, got several"),
        ({"Rows": 9}, " is truncated, damaged"),
        ({"WindowCenter": 5, "WindowWidth": 0}, ": expected a window with a width"),
        ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "CUBIC"},
         ": expected a window that is LINEAR, LINEAR_EXACT or"),
        ({"RescaleSlope": "nan", "RescaleIntercept": 0}, ": expected finite pixels"),
    ],
    ids=["palette", "subsampled", "frames", "size", "width", "function", "finite"],
)  # fmt: skip
def test_read_dicom_refuses_and_names_no_patient(tmp_path, deep, header, match):
    path = write_dicom(tmp_path / "a.dcm", deep, **header)
    with pytest.raises(ValueError, match=f"^image{match}") as caught:
        read_dicom(path, name="image")
    assert not any(word in str(caught.value) for word in (*PATIENT, "a.dcm"))
    assert caught.value.__cause__ is None  # what pydicom said stays out of a traceback's cause
    with pytest.raises(ValueError, match=f"^image .*a.dcm{match}"):
        load_image_file(path)
    with pytest.raises(Unusable, match=f"^its DICOM file{match}") as dropped:
        read_pixels(path)
    assert not any(word in str(dropped.value) for word in (*PATIENT, "a.dcm"))


def test_read_dicom_refuses_files_that_are_truncated_or_none(tmp_path, deep):
    path = write_dicom(tmp_path / "a.dcm", deep)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="DICOM file is truncated, damaged, no DICOM"):
        read_dicom(path)
    for content, match in ((b"", r"is empty \(0 bytes\)"), (b"text" * 100, "is truncated")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=match):
            read_dicom(path)
    path.write_bytes(whole)
    truncate(path)  # before its pixels
    with pytest.raises(ValueError, match="got one without, or truncated"):
        read_dicom(path)
    file = pydicom.dcmread(write_dicom(tmp_path / "b.dcm", deep))
    del file.PixelData
    file.save_as(tmp_path / "b.dcm")
    with pytest.raises(ValueError, match="expected DICOM with an image, got one without"):
        read_dicom(tmp_path / "b.dcm")
    with pytest.raises(FileNotFoundError):
        read_dicom(tmp_path / "absent.dcm")


def test_read_dicom_says_which_compression_it_cannot_read(tmp_path, deep, monkeypatch):
    encoded = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    path = write_dicom(
        tmp_path / "a.dcm", deep, syntax=pydicom.uid.JPEGLSLossless, PixelData=encoded
    )
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless)
    monkeypatch.setattr(type(decoder), "is_available", False)
    with pytest.raises(ValueError, match="compressed as JPEG-LS Lossless .* such as pylibjpeg"):
        read_dicom(path)


def test_read_dicom_says_what_to_install(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "source" / "a.dcm", RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    match = "needs pydicom: pip install pydicom"
    for read in (read_dicom, load_image_file, read_pixels):
        with pytest.raises(ModuleNotFoundError, match=match):
            read(path)
    with pytest.raises(ModuleNotFoundError, match=match):
        prepare_folder(tmp_path / "source", tmp_path / "out", size=32, progress=False)
    assert not (tmp_path / "out").exists()


def test_read_dicom_loads_nothing_of_the_patient(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    original, opened = pydicom.dcmread, []

    def spy(*arguments, **options):
        opened.append(original(*arguments, **options))
        return opened[0]

    monkeypatch.setattr(pydicom, "dcmread", spy)
    read_dicom(path)
    keywords = {element.keyword for element in opened[0]}
    assert keywords >= {"Rows", "PixelData"} and keywords <= set(PIXEL_ELEMENTS)


def test_read_dicom_shows_no_warning_of_pydicoms(tmp_path, deep):
    path = write_dicom(tmp_path / "a.dcm", deep, PixelData=deep.tobytes() + bytes(16))  # too many
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_dicom(path).shape == (8, 10)
    assert not caught


def test_read_dicom_leaves_warnings_as_they_were_in_threads(tmp_path, deep):
    path = write_dicom(tmp_path / "a.dcm", deep, PixelData=deep.tobytes() + bytes(16))
    before, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            shown = list(pool.map(read_dicom, [path] * 64))
    finally:
        sys.setswitchinterval(interval)
    assert all(np.array_equal(image, deep / 4095) for image in shown)
    assert list(warnings.filters) == before


def test_read_pixels_rounds_12_bits_to_8(tmp_path):
    image = read_pixels(write_dicom(tmp_path / "a.dicom", RAMP, **TWELVE_BITS))
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image)[0], np.round(np.arange(32) * 255 / 31))


def test_read_pixels_compares_a_dicom_files_size(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP[:20])
    assert read_pixels(path, expected=(20, 32)).size == (32, 20)
    with pytest.raises(Unusable, match="of another size than its table says"):
        read_pixels(path, expected=(32, 20))
    with pytest.raises(Unusable, match="its image is missing"):
        read_pixels(tmp_path / "absent.dcm")


def test_prepare_folder_takes_dicom_and_copies_nothing_of_its_header(tmp_path):
    write_dicom(tmp_path / "source" / "Roe.dcm", RAMP)
    path, _ = prepare_folder(tmp_path / "source", tmp_path / "out", size=32, progress=False)
    assert len(read_manifest(path)) == 1
    assert not words_written(tmp_path / "out", ["Roe", *PATIENT])
