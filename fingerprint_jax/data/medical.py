"""DICOM and NIfTI -> grey 8-bit slices and their patients, without anything else that the files say, their names included.

A file is called by a digest of its place that only the salt makes, and a patient by one of the PatientID. Whoever has the salt, and
the table of names beside it, can go back, and nobody else. The pixels go into the data set as those of PNG files do.
"""

import collections
import contextlib
import csv
import dataclasses
import fcntl
import functools
import hashlib
import hmac
import io
import os
import re
import secrets
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from fingerprint_jax.data import images
from fingerprint_jax.data.folders import File, Folder, Rejected
from fingerprint_jax.data.tables import normal_form
from fingerprint_jax.runtime import files
from fingerprint_jax.runtime.names import printable
from fingerprint_jax.runtime.progress import progress

# Centre and width in Hounsfield units, as radiologists set them.
WINDOWS = {"lung": (-600, 1500), "mediastinum": (50, 350), "abdomen": (40, 400), "brain": (40, 80), "bone": (400, 1800)}
WITHOUT_SALT = "not read without --salt=FILE, your secret file (made where it is missing): names of patients are derived from it"
INSTALL = "pip install 'fingerprint_jax[medical]'"
_SALT = re.compile(r"[0-9a-f]{64}\n")
_SLICES = re.compile(r"all|middle|every:[1-9][0-9]{0,3}")
_FRAME = re.compile(r"([0-9a-f]{16})/[0-9]{4,6}$")
_HEADER = ["name", "path"]  # of the table of names


@dataclasses.dataclass(frozen=True)
class Options:
    """What the flags say of DICOM and NIfTI.

    Args:
        salt: a file, made where it is missing, of which names and patients are made.
        window: a name of WINDOWS, `centre,width`, `file`, or nothing: then only what has 8 bits is read.
        slices: of each series or volume `all`, `every:N` from the first, or the `middle` one.

    Raises ValueError for another window, or other slices.
    """

    salt: str | Path = ""
    window: str = ""
    slices: str = "all"

    def __post_init__(self) -> None:
        if self.window not in ("", "file"):
            _ = self.span
        if not _SLICES.fullmatch(self.slices):
            raise ValueError(f"--slices={self.slices}: use all, middle or every:N")

    @property
    def span(self) -> tuple[float, float]:
        """The values that are black and white."""
        centre, width = self._window
        return centre - width / 2, centre + width / 2

    @property
    def _window(self) -> tuple[float, float]:
        try:
            centre, width = WINDOWS.get(self.window) or map(float, self.window.split(","))
        except ValueError:
            centre, width = 0.0, 0.0
        if not (0 < width < np.inf and abs(centre) < np.inf and centre - width / 2 < centre + width / 2):
            known = ", ".join(WINDOWS)
            raise ValueError(f"--window={self.window}: use centre,width such as -600,1500, file, or one of {known}")
        return centre, width

    def require_outside(self, output: Path) -> None:
        """Raises ValueError where the salt lies in a folder that is handed on."""
        path = Path(self.salt)
        if self.salt and any(of.is_relative_to(output.resolve()) for of in (path.absolute(), path.resolve())):
            raise ValueError(f"--salt={path} is in {output}, which is handed on: name a place that stays with you")

    def cut(self, slices: list[tuple]) -> list[tuple]:
        """Those of an ordered series that are asked for."""
        if self.slices == "middle":
            return [slices[len(slices) // 2]]
        return slices[:: 1 if self.slices == "all" else int(self.slices.partition(":")[2])]

    @property
    def described(self) -> dict[str, str]:
        """`window` in numbers, and `slices`."""
        numbers = () if self.window in ("", "file") else self._window
        return {"window": ",".join(f"{number:g}" for number in numbers) or self.window or "none", "slices": self.slices}


class Head(Protocol):
    """What a file says before its pixels, see dicom.py and nifti.py; patient and series are '' where it does not say."""

    @property
    def frames(self) -> int: ...  # noqa: D102
    @property
    def patient(self) -> str: ...  # noqa: D102
    @property
    def series(self) -> str: ...  # noqa: D102
    @property
    def number(self) -> int: ...  # noqa: D102
    @property
    def inverted(self) -> bool: ...  # noqa: D102
    @property
    def hounsfield(self) -> bool: ...  # noqa: D102
    def depth(self, frame: int) -> float | None: ...  # noqa: D102
    def as_it_is(self, frame: int) -> bool: ...  # noqa: D102
    def window(self, frame: int) -> tuple[float, float]: ...  # noqa: D102
    def values(self, frames: Sequence[int]) -> Iterator[np.ndarray]: ...  # noqa: D102


class Volumes:
    """The DICOM and NIfTI files of a pack.

    Args:
        options: of the flags.
        output: the folder that is written, in which no salt may lie.
    """

    def __init__(self, options: Options, output: Path) -> None:
        self.options, self._output = options, output
        self._names: dict[str, str] = {}  # of files, by what they are called
        self._read = False  # whether there are volumes

    @property
    def described(self) -> dict[str, str]:
        """`window` in numbers, and `slices`, for the summary of a data set; nothing where there are no volumes."""
        return self.options.described if self._read else {}

    @property
    def own(self) -> set[str]:
        """The real paths of the salt and its table, which are no images."""
        return {os.path.realpath(path) for path in (self.options.salt, self._table) if self.options.salt}

    @property
    def _table(self) -> str:
        return f"{self.options.salt}.csv"

    def hide(self, scanned: list[tuple[Folder, list[File], Rejected]]) -> tuple[list[File], Rejected]:
        """All files of some folders, and those refused; where one is a volume all but PNG and JPEG get names that say nothing.

        The files are changed in place. Without a salt volumes are refused. Raises ValueError without the packages that read them.
        """
        files = [file for _, found, _ in scanned for file in found]
        if not self.options.salt:
            lost = [(file.place, f"{file.volume}: {WITHOUT_SALT}") for file in files if file.volume]
            return [file for file in files if not file.volume], [line for *_, refused in scanned for line in refused] + lost
        if any(file.volume for file in files):
            _ = self._readers
        for file in files:
            if file.path.suffix.lower() not in images.FORMATS:
                file.shown = self._hidden(file.folder, file.path)
                file.id = file.group = file.folder.prefix + Path(file.shown).name
        return files, [(self._hidden(folder, Path(path)), why) for folder, _, refused in scanned for path, why in refused]

    def _hidden(self, folder: Folder, path: Path) -> str:
        """The path that stands for one of a folder; PNG and JPEG have their own, as their ids have."""
        return str(path if path.suffix.lower() in images.FORMATS else folder.path / self._named(folder, path))

    def slices(self, found: list[File], place: Path, max_pixels: int, listed: bool) -> tuple[list[File], Rejected]:
        """The slices that are asked for in place of the volumes, as PNG files in the folder `place`; and the volumes refused.

        A real volume without a patient, that of --groups where these are `listed` and else the PatientID of a DICOM, is refused: as
        one more patient it would make every p too small. A synthetic volume is a group of its own.
        """
        if self._names:
            self._keep_names()
        volumes = [file for file in found if file.volume]
        if not volumes:
            return found, []
        self._read = True
        place.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the readers quote what files say
            heads = _each("reading the heads of", lambda file: self._head(file, max_pixels, listed), volumes)
            good = [(file, *head) for file, head in zip(volumes, heads, strict=True) if not isinstance(head, str)]
            wanted = [(*good[i][:2], frames, place / str(i)) for i, frames in self._chosen(good).items()]
            made = _each("reading slices of", lambda each: self._written(*each), wanted)
        results: dict[int, list[File] | str] = {id(file): result for (file, *_), result in zip(wanted, made, strict=True)}
        results |= {id(file): head for file, head in zip(volumes, heads, strict=True) if isinstance(head, str)}
        slices: list[File] = []
        rejected: Rejected = []
        orders: collections.Counter[Folder] = collections.Counter()
        for file in found:
            result = results.get(id(file), []) if file.volume else [file]
            if isinstance(result, str):
                rejected.append((file.place, result))
                continue
            for each in result:
                each.order = orders[each.folder]
                orders[each.folder] += 1
                slices.append(each)
        return slices, rejected

    def _head(self, file: File, max_pixels: int, listed: bool) -> tuple[Head, list[float | None]] | str:
        """What a file says before its pixels, and where each frame lies, after its patient is in `file`; why it is refused."""
        try:
            head = self._readers[file.volume](file.path, max_pixels)
            depths = [head.depth(frame) for frame in range(head.frames)]
        except ValueError as error:
            return str(error) if str(error) == images.NO_IMAGE else f"{file.volume}: {error}"
        if not file.known and file.split.endswith("generated"):
            file.group, file.known = "v" + self._digest("file", file.id), True
        elif not file.known and not listed and head.patient:
            file.group, file.known = "p" + self._digest("patient", normal_form(head.patient)), True
        if not file.known:
            where = "--groups" if listed else "it"
            return f"{file.volume}: no patient in {where}, give --groups=CSV with a line for each such file"
        return head, depths

    def _chosen(self, good: Sequence[tuple[File, Head, list[float | None]]]) -> dict[int, list[int]]:
        """The frames that are asked for of each file, by its place in `good`; a series or a volume is cut as one."""
        series: dict[tuple, list[tuple]] = {}
        for i, (file, head, depths) in enumerate(good):
            slices = series.setdefault((file.folder, head.series or i), [])
            slices += [(depth, head.number, i, frame) for frame, depth in enumerate(depths)]
        chosen: dict[int, list[int]] = {}
        for slices in series.values():
            known = all(depth is not None for depth, *_ in slices)
            slices.sort(key=lambda each: each if known else each[1:])
            for *_, i, frame in self.options.cut(slices):
                chosen.setdefault(i, []).append(frame)
        return chosen

    def _written(self, file: File, head: Head, frames: list[int], place: Path) -> list[File] | str:
        """A file's slices, written as `<place>-<frame>.png`; the reason where one is refused, with which all of them are."""
        made, frames = [], sorted(frames)
        try:
            for frame, values in zip(frames, head.values(frames), strict=True):
                if not np.isfinite(values).all():
                    raise ValueError("values that are no numbers (NaN or infinite)")
                path = place.with_name(f"{place.name}-{frame}.png")
                images.save(path, grey(values, *self._span(head, frame), head.inverted))
                name = f"{file.id}/{frame:04d}" if head.frames > 1 else file.id
                made.append(dataclasses.replace(file, path=path, id=name))
        except ValueError as error:
            return f"{file.volume}: {error}"
        return made

    def _span(self, head: Head, frame: int) -> tuple[float, float]:
        """The values that are black and white in a frame; raises ValueError where no window says so."""
        window = self.options.window
        if window == "file":
            return head.window(frame)
        if not window and not head.as_it_is(frame):
            raise ValueError(f"more than 8 bits: give --window=centre,width, file, or one of {', '.join(WINDOWS)}")
        if window in WINDOWS and not head.hounsfield:
            raise ValueError(f"no CT with slope and intercept: --window={window} is of Hounsfield units")
        return self.options.span if window else (0, 255)

    @functools.cached_property
    def _readers(self) -> dict[str, Callable[[Path, int], Head]]:
        """What reads the heads of files of each kind, by packages that are optional."""
        try:
            from fingerprint_jax.data import dicom, nifti
        except ImportError:
            raise ValueError(f"DICOM and NIfTI need two more packages: {INSTALL}") from None
        return {"DICOM": dicom.read, "NIfTI": nifti.read}

    def _named(self, folder: Folder, path: Path) -> str:
        place = os.fsencode(os.path.relpath(path, folder.path)).decode(errors="backslashreplace")
        name = self._digest("file", f"{folder.split}/{folder.name}/{place}")
        self._names[name] = str(path)
        return name

    def _digest(self, kind: str, text: str) -> str:
        return hmac.new(self._key, f"{kind}\0{text}".encode(), hashlib.sha256).hexdigest()[:16]

    @functools.cached_property
    def _key(self) -> bytes:
        """The salt, made where it is missing. Raises ValueError where it is none, open to others, or in the output."""
        path = Path(self.options.salt)
        self.options.require_outside(self._output)
        if path.is_dir():
            raise ValueError(f"--salt={path} is a folder: name a file, it is made")
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            _write_private(path, secrets.token_hex(32) + "\n")
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ValueError(f"--salt={path} is open to others: chmod 600 {path}")
        text = files.read_bytes(path, 2**10)
        if not _SALT.fullmatch(text.decode(errors="replace")):
            raise ValueError(f"--salt={path} is no salt of ours: name a new file, it is made")
        return bytes.fromhex(text.decode().strip())

    def _keep_names(self) -> None:
        """Adds the files of this pack to the table of names, which lies beside the salt; other packs wait meanwhile.

        A name is of a place within its folder: of two packs with files at the same place it is that of both, a line each.
        """
        path, known = Path(self._table), dict.fromkeys((name, printable(of)) for name, of in self._names.items())
        with files.opened(Path(self.options.salt), os.O_RDONLY, "rb") as salt:
            fcntl.flock(salt, fcntl.LOCK_EX)
            if path.exists():
                lines = list(csv.reader(io.StringIO(files.read_text(path))))
                if lines[:1] != [_HEADER] or any(len(line) != len(_HEADER) for line in lines):
                    raise ValueError(f"{path}: no table of names of ours: move it away")
                known = dict.fromkeys(map(tuple, lines[1:])) | known
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerows([_HEADER, *known])
            with files.replacing(path) as temporary:
                _write_private(temporary, text.getvalue())


def file_of(id: str) -> str:
    """The id of the file that a slice is of; any other id as it is."""
    return _FRAME.sub(r"\1", id)


def grey(values: np.ndarray, low: float, high: float, inverted: bool = False) -> np.ndarray:
    """Values [H,W] -> uint8, black up to `low` and white from `high`, or the other way round."""
    pixels = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return 255 - pixels if inverted else pixels


def _each(what: str, do: Callable, items: Sequence) -> list:
    with ThreadPoolExecutor() as pool, progress(what, len(items), "files") as advance:
        return [result for result in _counted(pool.map(do, items), advance)]


def _counted(results: Iterator, advance: Callable[[], None]) -> Iterator:
    for result in results:
        yield result
        advance()


def _write_private(path: Path, text: str) -> None:
    """A new file that its owner alone can read; FileExistsError where one is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
