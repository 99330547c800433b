"""Files: written whole or not at all, locked, and read as what they have to be. Names of files are often somebody else's choice.

A folder that is handed around can hold anything under the names that are read: a link to another file, a pipe nobody writes to, a
device without end, text where a number should be. Nothing here follows a link to write, waits for a pipe, or reads without bound.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Generator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fingerprint_jax.runtime import distributed

MOST = 2**30  # bytes of a file that is read at once

# What systems leave in folders; it belongs to no run.
LITTER = (".DS_Store", ".localized", "Icon\r", ".directory", "Thumbs.db", "desktop.ini", "lost+found")


def litter(name: str) -> bool:
    """Whether a file of this name is what macOS, Windows, KDE, NFS or a file system leaves in any folder."""
    return name in LITTER or name.startswith(("._", ".nfs", ".fuse_hidden"))


def inside(name: str) -> bool:
    """Whether a relative path that somebody names stays below the folder that it is put in."""
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


@contextlib.contextmanager
def replacing(path: str | Path) -> Generator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed when it does not.

    Raises ValueError for a device, such as /dev/stdout: root would have a file in its place.
    """
    path = Path(path)
    if path.absolute().parent == Path("/dev") or path.is_char_device() or path.is_block_device():
        raise ValueError(f"{path}: a device, name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # a link of that name is not written through
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def opened(path: Path, flags: int, mode: str) -> IO:
    """A regular file, opened without following a link or waiting for a pipe; UTF-8 where `mode` is of text.

    Raises ValueError that names the file where it is no regular file, OSError where it cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if path.is_symlink() or path.is_dir() or path.is_fifo():
            raise ValueError(f"{path}: {_kind(path)}, expected a file: remove it") from None
        raise error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path}: {_kind(path)}, expected a file: remove it")
    return os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8")


def _kind(path: Path) -> str:
    kinds = ("a link", path.is_symlink), ("a folder", path.is_dir), ("a pipe", path.is_fifo)
    return next((kind for kind, found in kinds if found()), "no regular file")


def make_private(folder: Path) -> None:
    """Makes a folder that only its owner may enter, unless it is there; raises ValueError where others may, or own it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ValueError(f"{folder} is open to others: make it yours alone (mode 0700)")


def refuse_links(folder: Path) -> None:
    """Raises ValueError where an entry of a folder is a link: it would be written through."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_symlink():
            raise ValueError(f"{path} is a link, and nothing is written through one: put what it names in its place")


def refuse_foreign(output: Path, kind: str, record: str, fields: Mapping[str, type], remedy: str) -> None:
    """Raises ValueError where the folder --output has links, which would be written through, or files and is none of a `kind`.

    What makes it one is a record, which is written before anything else: what lies beside it is then ours to replace.

    Args:
        output: the folder, there or not.
        kind: what it is to be, such as audit.
        record: the name of its record.
        fields: of the record, with their types: another program may have a file of that name.
        remedy: what to do where the record is not so.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output={output}: a file is there, name a folder")
    refuse_links(output)
    if not output.is_dir():
        return
    if (output / record).exists():
        read_json(output / record, fields, remedy)
        for place, folders, _ in os.walk(output):
            for name in folders:
                refuse_links(Path(place, name))
        return
    begun = rf"lock|.+\.(log|out|err|txt)|\.{re.escape(record)}\.[0-9]+\.tmp"  # what can lie there before the record does
    for path in sorted(output.iterdir()):
        if not litter(path.name) and not (path.is_file() and re.fullmatch(begun, path.name)):
            raise ValueError(f"--output={output} is no {kind}, and {path.name!r} is in it: name an empty folder, or a new one")


def remove(folder: Path, ours: re.Pattern) -> None:
    """Removes a folder, if it is there, that is to be made anew.

    Raises ValueError, before anything is removed, for a link, and for a file whose path in the folder is none of `ours`.
    """
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link: remove it")
    for place, _, found in os.walk(folder):
        for path in (Path(place, name) for name in found):
            if not ours.fullmatch(str(path.relative_to(folder))) and not litter(path.name):
                raise ValueError(f"{path} is none of our files, and {folder} is made anew: move it away")
    shutil.rmtree(folder, ignore_errors=True)


def appending(path: Path) -> IO[str]:
    """A text file to which lines are appended; a link is refused with ValueError."""
    return opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, "a")


class Held(ValueError):
    """Another process has the lock."""


@contextlib.contextmanager
def locked(path: Path, refusal: str = "") -> Generator[None]:
    """The block that only this process is in; the lock goes with the process, however it ends.

    Without a `refusal` it waits for others. Raises Held where another one is: `refusal`, in which %s stands for it; ValueError
    where the lock is a link, whose target would be written.
    """
    with opened(path, os.O_RDWR | os.O_CREAT, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise Held(refusal.replace("%s", file.read(1000).partition("\n")[0] or "another process")) from None
        if refusal and not os.fstat(file.fileno()).st_nlink:
            # Who held it has removed it: the next file of that name is another lock.
            raise Held(refusal.replace("%s", "another process"))
        if (content := file.read(1000)) and not content.startswith("process "):
            raise ValueError(f"{path}: no lock of ours, it is not overwritten: move it away")
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {platform.node()}\n{secrets.token_hex(8)}")  # the last tells it from any other
        file.flush()
        yield


@distributed.by_first
def write_text(path: str | Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_bytes(path: str | Path, most: int = MOST) -> bytes:
    """The content of a regular file, a link to one included.

    Raises ValueError where it is none or has more than `most` bytes, OSError where it cannot be read.
    """
    path = Path(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise ValueError(f"{path}: {_kind(path)}, expected a file")
    with os.fdopen(descriptor, "rb") as file:
        if found.st_size > most:
            raise ValueError(f"{path}: {found.st_size:,} bytes, at most {most:,} are read")
        return file.read(found.st_size)  # as many bytes are set aside first


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 file; raises ValueError where it is none, see `read_bytes`."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def read_json(path: str | Path, fields: Mapping[str, type | tuple[type, ...]], remedy: str) -> dict[str, Any]:
    """The object of a JSON file that we wrote.

    Args:
        path: the file.
        fields: that it has, with their types.
        remedy: what to do where the file is not so.

    Raises ValueError in one line that names the file, what is wrong and the remedy; FileNotFoundError where it is not there.
    """
    try:
        found = json.loads(read_text(path))
        if not isinstance(found, dict):
            raise ValueError(f"{path}: {_json_type(found)}, expected an object")
        for name, kind in fields.items():
            kinds = kind if isinstance(kind, tuple) else (kind,)
            if name not in found:
                raise ValueError(f"{path}: field {name!r} is missing")
            if not isinstance(found[name], kinds) or (isinstance(found[name], bool) and bool not in kinds):
                raise ValueError(f"{path}: field {name!r} is {_json_type(found[name])}, expected {' or '.join(map(_named, kinds))}")
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError, OSError) as error:
        reason = str(error).removeprefix(f"{path}: ") if not isinstance(error, RecursionError) else "nested too deeply"
        raise ValueError(f"{path} cannot be used ({reason}): {remedy}") from None
    return found


def digest(path: str | Path) -> str:
    """SHA-256 of the content of a regular file; raises as `read_bytes` does."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def seal(content: dict[str, Any]) -> str:
    """SHA-256 of a JSON object without its fields `seal` and `sha256`: it shows damage, and anybody can make it anew."""
    bare = {name: value for name, value in content.items() if name not in ("seal", "sha256")}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def _named(kind: type) -> str:
    names = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}
    return names.get(kind, "null")


def _json_type(value: object) -> str:
    return _named(type(value))


def read_journal(path: str | Path, begins: str = "") -> list:
    """The values of a file of one JSON value a line, to which lines are appended one by one; [] where there is none.

    What a kill has left of a last line is cut off, so that the next one begins a line. Raises ValueError that names the file and
    the line, and leaves it as it is, where another one is no JSON, or where one does not begin as all of ours do.
    """
    path = Path(path)
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return []
    *lines, cut = content.split(b"\n")
    found, first = [], begins.encode()
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            raise ValueError(f"{path}, line {number}: no JSON; remove the line, what it stood for is done again") from None
    for number, line in enumerate([*lines, cut], 1):
        if not (line.startswith(first) or (number > len(lines) and first.startswith(line))):
            raise ValueError(f"{path}, line {number}: not one that is written here; the file is left as it is, name another folder")
    if cut:
        with opened(path, os.O_WRONLY, "ab") as file:
            file.truncate(len(content) - len(cut))
    return found
