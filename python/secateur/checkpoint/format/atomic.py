"""A file that appears whole or not at all, whatever happens to this process, the disk's space or the power."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from ..._base.errors import Error

# Errors of file systems that cannot sync a directory, and of directories that may be written but not opened.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF)
# Errors of file systems that have no files without a name, or cannot give them one.
_NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS, errno.EXDEV, errno.EPERM)


def write(path: Path, pieces: Iterable[bytes | memoryview], again: Callable[[], bytes] | None = None) -> None:
    """Write ``pieces`` one after the other to ``path``.

    They go to a file beside it, reach the disk (fsync), and only then take the name (rename). On any error the file
    that was there is there still, and the other one is gone. Where the file system can, that one has no name until it
    is whole, so that a killed process leaves nothing; elsewhere, what it leaves is taken away by the next write to
    ``path``. A symbolic link is followed. The permissions of the file that was there stay.

    Args:
        again: asked when all is written; gives the first bytes once more, as many as there were.

    Raises:
        Error: path is a folder, or a device, a pipe or a socket, which the rename would replace. OSError: it cannot be
            written.
    """
    try:
        _write_whole(Path(os.path.realpath(path)), pieces, again)  # a rename would replace the link, not its file
    except OSError as error:  # it may name the file beside, of which the caller knows nothing
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def _write_whole(path: Path, pieces: Iterable[bytes | memoryview], again: Callable[[], bytes] | None) -> None:
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    if mode is not None and not path.is_file():
        kind = "folder" if path.is_dir() else "device or a pipe: it would be replaced"
        raise Error(f"save: {path} must be a file or not be there yet, but is a {kind}")
    _remove_stale(path)
    beside = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}.tmp")
    nameless = True
    try:
        file = _without_name(path.parent, 0o666 if mode is None else mode)
        if file is None:
            nameless = False
            file = _with_name(beside, 0o666 if mode is None else mode)
        try:
            if mode is not None:
                os.fchmod(file, mode)  # gives back what the umask took away
            for piece in pieces:
                _write(file, memoryview(piece).cast("B"))
            if again is not None:
                os.pwrite(file, again(), 0)
            os.fsync(file)
            if nameless:
                file = _named(file, beside)
            os.replace(beside, path)
        finally:
            os.close(file)  # and with it goes the lock
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    _sync_folder(path.parent)


def _prefix(path: Path) -> str:
    """How the names of the files beside ``path`` begin: short, since its own name may be as long as names can be."""
    return f".{hashlib.sha256(os.fsencode(path.name), usedforsecurity=False).hexdigest()[:12]}-"


def _without_name(folder: Path, mode: int) -> int | None:
    """A new file that has no name yet, locked; None where there are none."""
    if not hasattr(os, "O_TMPFILE"):
        return None
    try:
        file = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno in _NO_NAMELESS:  # among them a folder that is not there, which fails once more
            return None
        raise
    _lock(file)
    return file


def _named(file: int, beside: Path) -> int:
    """The file under its name: itself, or a copy where the system cannot do that, for the first is closed."""
    try:
        os.link(f"/proc/self/fd/{file}", beside, src_dir_fd=file)  # without a src_dir_fd it would link the link
        return file
    except OSError as error:
        if error.errno not in _NO_NAMELESS:
            raise
    copy = _with_name(beside, stat.S_IMODE(os.fstat(file).st_mode))
    try:
        os.fchmod(copy, stat.S_IMODE(os.fstat(file).st_mode))
        first = 0
        while piece := os.pread(file, 2**20, first):
            _write(copy, memoryview(piece))
            first += len(piece)
        os.fsync(copy)
    except BaseException:
        os.close(copy)
        raise
    os.close(file)
    return copy


def _with_name(beside: Path, mode: int) -> int:
    while True:
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        _lock(file)
        if os.path.exists(beside):
            return file
        os.close(file)  # another writer came before the lock, and took it for one that nobody has


def _lock(file: int) -> None:
    with contextlib.suppress(OSError):  # where there are no locks, nobody removes anything
        fcntl.flock(file, fcntl.LOCK_EX)


def _remove_stale(path: Path) -> None:
    """Remove what killed writers of ``path`` left beside it: such files as nobody holds a lock on."""
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            if name.startswith(_prefix(path)) and name.endswith(".tmp"):
                _remove_if_free(path.with_name(name))


def _remove_if_free(beside: Path) -> None:
    with contextlib.suppress(OSError):
        file = os.open(beside, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(beside)
        finally:
            os.close(file)


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
