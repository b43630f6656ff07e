import numpy as np
import pytest
import torch
from PIL import Image

from medsign_lite.image_stack import read_image_stack


def save(path, array):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


def test_read_image_stack_of_a_folder(tmp_path):
    save(tmp_path / "b.png", np.full((8, 8), 7))
    save(tmp_path / "a.png", np.arange(192).reshape(8, 8, 3))
    stack = read_image_stack(tmp_path, size=8)
    assert stack.shape == (2, 3, 8, 8) and stack.dtype == torch.uint8
    assert stack[0, :, 0, 1].tolist() == [3, 4, 5]
    assert (stack[1] == 7).all()


def test_read_image_stack_cuts_the_central_square(tmp_path):
    wide = np.zeros((8, 16))
    wide[:, 4:12] = 200
    save(tmp_path / "wide.png", wide)
    assert (read_image_stack(tmp_path, size=8) == 200).all()
    assert (read_image_stack(tmp_path, size=4) == 200).all()
    with pytest.raises(ValueError, match="split 'test': expected a manifest, got .*, which has no"):
        read_image_stack(tmp_path, size=8, split="test")


def test_read_image_stack_of_a_manifest_reads_one_split(tmp_path):
    rows = ["id,image,modality,split,report,findings,words,sides,masks"]
    for name, split in (("x", "train"), ("y", "test"), ("z", "train")):
        save(tmp_path / f"{name}.png", np.full((8, 8), ord(name)))
        rows.append(f"{name},{name}.png,chest,{split},Normal.,,,,")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    assert read_image_stack(tmp_path, size=8)[:, 0, 0, 0].tolist() == [ord("x"), ord("z")]
    stack = read_image_stack(tmp_path / "manifest.csv", size=8, split="test")
    assert stack[:, 0, 0, 0].tolist() == [ord("y")]


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 8, 8, 3), (6, 3, 8, 8)])
def test_read_image_stack_of_an_array(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.save(tmp_path / "a.npy", array)
    stack = read_image_stack(tmp_path / "a.npy", size=8, limit=3)
    assert stack.shape == (3, 3, 8, 8)
    pixel = array[2] if len(shape) == 3 else array[2][..., 1] if shape[-1] == 3 else array[2, 1]
    assert np.array_equal(stack[1, 1].numpy(), pixel)


def test_read_image_stack_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent do not exist"):
        read_image_stack(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no image"):
        read_image_stack(tmp_path)
    np.save(tmp_path / "a.npy", np.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match=r"expected uint8 .* got float64 \(2, 8, 8\)"):
        read_image_stack(tmp_path / "a.npy", size=8)
