"""The image files of a folder, found by their path or, where it is unique, their name."""

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

from data_prep.pixels import Unusable
from medsign_lite.deployment.dicom import DICOM_ENDINGS, is_dicom

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", *DICOM_ENDINGS)


class ImageListing:
    """Every image below a folder.

    Args:
        folder: looked through with its sub-folders, once; what has an image's ending counts, and
            DICOM without any ending, by its first bytes.

    Attributes:
        paths: all of them, sorted.
        left_out: how many other files there are. Hidden files without an image's ending do not
            count, nor does a DICOMDIR, the index of a disc.
    """

    def __init__(self, folder: Path) -> None:
        below = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
        self.paths = sorted(path for path in below if _is_image(path, folder))
        others = set(below).difference(self.paths)
        self.left_out = sum(not _is_ignored(path, folder) for path in others)
        self._by_path = {path.relative_to(folder).as_posix(): path for path in self.paths}
        self._by_name = defaultdict(list)
        for path in self.paths:
            self._by_name[path.name].append(path)

    def find(self, cell: str) -> Path:
        """The image that a table's cell names, by its path below the folder or by its name.

        Raises:
            Unusable: if there is none, if several have the name, or if the path leaves the folder.
        """
        written = below_source(cell)
        if written.as_posix() in self._by_path:
            return self._by_path[written.as_posix()]
        candidates = self._by_name.get(written.name, []) if len(written.parts) == 1 else []
        if len(candidates) > 1:
            raise Unusable("its row names several images: the name alone is not unique")
        if not candidates:
            raise Unusable("its row names no image of the source")
        return candidates[0]


def _is_image(path: Path, folder: Path) -> bool:
    if path.suffix.lower() in ENDINGS:
        return True
    # Only a file is opened: reading what waits for a writer would never end.
    bare = not path.suffix and not _is_ignored(path, folder)
    return bare and path.is_file() and is_dicom(path)


def _is_ignored(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return hidden or path.name.upper() == "DICOMDIR"


def below_source(cell: str) -> PurePosixPath:
    """A path as a table writes it, which has to stay below the folder it is relative to.

    Raises:
        Unusable: if it is absolute or goes up.
    """
    written = PurePosixPath(cell.replace("\\", "/"))
    if written.is_absolute() or PureWindowsPath(cell).drive or ".." in written.parts:
        raise Unusable("its row names a path outside of the source")
    return written
