"""A file that appears whole or not at all, whatever happens to this process, the disk's space or the power."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from ..._base.errors import Error

# Errors of file systems that cannot sync a directory, and of directories that may be written but not opened.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF)


def write(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write ``pieces`` one after the other to ``path``.

    They go to a file beside it, reach the disk (fsync), and only then take the name (rename). On any error the file
    that was there is there still, and the other one is gone; a killed process may leave that one behind, as
    ``.<16 digits>.tmp``. A symbolic link is followed. The permissions of the file that was there stay.

    Raises:
        Error: path is a folder, or a device, a pipe or a socket, which the rename would replace. OSError: it cannot be
            written.
    """
    path = Path(os.path.realpath(path))  # a rename would replace the link, not the file that it stands for
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    if mode is not None and not path.is_file():
        kind = "folder" if path.is_dir() else "device or a pipe: it would be replaced"
        raise Error(f"save: {path} must be a file or not be there yet, but is a {kind}")
    beside = path.with_name(f".{secrets.token_hex(8)}.tmp")  # short: path's own name may be as long as names can be
    try:
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if mode is None else mode)
        try:
            if mode is not None:
                os.fchmod(file, mode)  # gives back what the umask took away
            for piece in pieces:
                _write(file, memoryview(piece).cast("B"))
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    _sync_folder(path.parent)


def _write(file: int, piece: memoryview) -> None:
    while len(piece):
        piece = piece[os.write(file, piece) :]  # takes 2 GB at most


def _sync_folder(folder: Path) -> None:
    """Sync the folder, so that the new name reaches the disk too."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
