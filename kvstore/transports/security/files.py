"""Reading files of keys and credentials, refusing those that others can read or change."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kvstore.core.errors import ConfigurationError

MAX_FILE_BYTES = 16 << 20


def read_secret(setting: str, path: Path) -> bytes:
    """Raises ConfigurationError unless only its owner can read the file (mode 0600)."""
    return _read(
        setting, path, stat.S_IRWXG | stat.S_IRWXO, "others can read it; run: chmod 600 {path}"
    )


def read_trusted(setting: str, path: Path) -> bytes:
    """Raises ConfigurationError if others can change the file."""
    return _read(
        setting, path, stat.S_IWGRP | stat.S_IWOTH, "others can change it; run: chmod go-w {path}"
    )


def write_new(path: Path, text: str, mode: int) -> None:
    """Raises ConfigurationError if the file is there already: keys are not written over."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} is there already; choose another name") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _read(setting: str, path: Path, forbidden_mode: int, remedy: str) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & forbidden_mode:
                mode = stat.S_IMODE(status.st_mode)
                raise ConfigurationError(
                    f"{setting}: {path} has mode {mode:04o}: {remedy.format(path=path)}"
                )
            if status.st_size > MAX_FILE_BYTES:
                raise ConfigurationError(f"{setting}: {path} is too large; give the right file")
            return file.read()
    except OSError as error:
        raise ConfigurationError(
            f"{setting}: cannot read {path}: {error.strerror}; correct the path or its mode"
        ) from error
