"""Making and clearing away the file that backs an arena."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvstore.core.errors import ConfigurationError
from kvstore.tiers.memory import ALIGNMENT

_PREFIX = "kvstore-arena-"
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_ATTEMPTS = 8
_HUGE_PAGE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class ArenaFile:
    """An open file that this process made. Its lock says that the owner lives; it ends with the
    process."""

    path: Path
    descriptor: int


def create_arena_file(folder: Path, file_bytes: int) -> ArenaFile:
    """A new sparse file, for the owner's eyes only (mode 0600), under a name nobody can guess.

    Files that dead owners left in `folder` are removed first: nothing else would give back their
    memory. Raises ConfigurationError if the folder cannot be used or is too small.
    """
    _check_folder(folder)
    remove_abandoned(folder)
    _check_size(folder, file_bytes)
    try:
        file = _create_locked(folder)
        os.truncate(file.descriptor, file_bytes)
    except OSError as error:
        raise ConfigurationError(
            f"arena: cannot make a file of {file_bytes} bytes in {folder}: {error.strerror}; "
            "set another arena folder"
        ) from error
    return file


def page_bytes(folder: Path) -> int:
    """What a file's length is to be a multiple of: a huge page, on a filesystem of these."""
    with suppress(OSError):
        page = os.statvfs(folder).f_bsize
        if page >= _HUGE_PAGE_BYTES:
            return page
    return ALIGNMENT


def _check_folder(folder: Path) -> None:
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"arena: {folder} is no folder that this user may write to; set another arena folder"
        )


def _check_size(folder: Path, file_bytes: int) -> None:
    """Refuse now what would otherwise end in SIGBUS or the out-of-memory killer, under load."""
    memory_bytes = _memory_limit_bytes()
    if file_bytes > memory_bytes:
        raise ConfigurationError(
            f"arena: {file_bytes} bytes are more than the {memory_bytes} bytes of memory that this "
            "process may use; make the host tier smaller"
        )
    space = os.statvfs(folder)
    free_bytes = space.f_bavail * space.f_frsize
    if file_bytes > free_bytes:
        raise ConfigurationError(
            f"arena: {file_bytes} bytes do not fit in {folder}, which has {free_bytes} bytes free; "
            "make the host tier smaller, the shared memory of the container larger, or set another "
            "arena folder"
        )


def _memory_limit_bytes() -> int:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no such limit ("max"), or no such control group
        return min(physical, int(_CGROUP_LIMIT.read_text()))
    return physical


def _create_locked(folder: Path) -> ArenaFile:
    """Another process may take the new file for an abandoned one before we lock it: then try
    again."""
    for _ in range(_ATTEMPTS):
        path = folder / f"{_PREFIX}{secrets.token_hex(16)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if _lock(descriptor) and os.fstat(descriptor).st_nlink == 1:
            return ArenaFile(path, descriptor)
        os.close(descriptor)
        path.unlink(missing_ok=True)
    raise ConfigurationError(f"arena: {folder} is being cleared by others; set another folder")


def remove_abandoned(folder: Path) -> None:
    """Remove the arenas of nodes that were killed: those that nobody has locked."""
    for path in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or gone meanwhile
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if _lock(descriptor):
                    path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
