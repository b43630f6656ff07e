"""Files and folders that are either whole or absent.

Training is killed, disks fill up. What this library writes, and reads again, goes to a temporary
name in the same folder first and is renamed when complete, so that a reader never meets half a file
and a failed write leaves the earlier version as it was.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: str | Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Open `path` for writing; it appears under its name only if the block ends without error.

    Args:
        path: where the file shall be; its folder is created.
        private: nobody but its owner may read it (mode 0600), whatever the earlier version allowed.

    Yields:
        A binary file, open for writing.

    Raises:
        OSError: if the file cannot be written; a full disk is named as such, with the path and
            what to do. Nothing half-written is left behind.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with whole_file(folder / "greeting.txt") as file:
        ...     _ = file.write(b"hello")
        >>> (folder / "greeting.txt").read_text()
        'hello'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if private:  # from the first byte on
            temporary.touch(0o600)
        file = open(temporary, "wb")
        yield file
        file.close()  # flushes: a full disk may only show here
        os.replace(temporary, path)
    except BaseException as error:  # also Ctrl-C: the temporary file goes, the error goes on
        _discard(file, temporary)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full and error.__cause__ is None:  # not yet explained by a block inside this one
            raise OSError(
                error.errno,
                "no space left on the disk: free some or choose another folder, then run again "
                "(nothing half-written was left)",
                str(path),
            ) from error
        raise


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Write a folder under a temporary name; at the end it takes the place of `path`.

    For what another library writes as several files.

    Yields:
        The empty temporary folder. An error removes it and leaves the earlier folder as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _discard(file: BinaryIO | None, temporary: Path) -> None:
    if file is not None and not file.closed:
        try:
            file.close()
        except OSError:  # the disk that is full when writing is full when flushing
            pass
    temporary.unlink(missing_ok=True)
