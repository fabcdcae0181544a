"""Files that are written whole or not at all, and errors that name them in one line."""

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write a file so that, whatever goes wrong, its path holds the old content or the new.

    A link stays one: what it points to is written. A device or a pipe is written into.
    Raises OSError, with that path, if the file can't be written; no stray file stays behind.
    """
    with naming_file(path):
        if os.path.exists(path) and not os.path.isfile(path):
            Path(path).write_bytes(content)
            return
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # the bytes are on the disk before the name points there
            os.replace(temporary, target)
        except BaseException:  # Ctrl-C too
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def open_regular(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file to read it: no pipe or device, which may never end. OSErrors have its path."""
    with naming_file(path):
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise OSError(errno.EINVAL, "Not a regular file")
        with open(path, "rb") as file:
            yield file


@contextlib.contextmanager
def naming_file(path: str | os.PathLike) -> Iterator[None]:
    """Let an error of the system name the file that it is about."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def prepare_streams() -> None:
    """Let stdin, stdout and stderr be used, whatever is printed, even where they are closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name) or open(os.devnull, mode)  # noqa: SIM115
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that it can't encode
        setattr(sys, name, stream)


def printable(text: str) -> str:
    """Return a text as one line that does nothing to a terminal, whatever a file is called."""
    return text if text.isprintable() else repr(text)[1:-1]


def exit_code(script: str, command: Callable[[], int], advice: str = "") -> int:
    """Run a command; return its exit code. What goes wrong is one line on stderr.

    The advice is for who interrupted it.
    """
    prepare_streams()
    try:
        return command()
    except KeyboardInterrupt:
        print(f"{script}: interrupted{advice}", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"{script}: error: {printable(str(error))}", file=sys.stderr)
        return 1
