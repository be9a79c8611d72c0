"""Text files of rows: find the file that a source names, unpack it, and decode it."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from tunesmith.data.documents.encoding import LOST, decode
from tunesmith.data.documents.formats.zip_xml import open_zip, read_part
from tunesmith.data.files import is_there, refuse_pipe
from tunesmith.data.readers.row import unreadable
from tunesmith.data.remote import fetched, local_path, remote_url
from tunesmith.errors import DataError, first_names

PACKED = (".gz", ".zip")
MOST_UNPACKED = 4 * 2**30  # bytes of a gzip file, unpacked
BLOCK = 2**20  # bytes
SAMPLE = 4096  # bytes in which zero bytes reveal UTF-16 or UTF-32 without a byte order mark
UPPER_ZEROS = 0.8  # of the upper halves of letters in UTF-32; in UTF-16 half of these bytes are letters
ZERO_SHARE = 0.3  # of the bytes; text in a Latin script has zeros in half of them
# The mark of UTF-32 begins with that of UTF-16, so it is looked for first.
WIDE_MARKS = (
    ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
    ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
)
# What archivers of operating systems add to a zip file.
ADDED = ("__MACOSX/", ".DS_Store", "Thumbs.db")


# Files with parts: sheets, keys of a document, files of an archive.
PARTED = (".xlsx", ".xlsm", ".json", ".zip")


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file that a source names.

    Attributes:
        path: the file.
        part: what follows `#`: a sheet of a workbook, a key of a JSON document, or a file in a zip archive.
        kind: lower-case extension of its contents; `.csv` for `rows.csv.gz`.
        name: its name in locations of rows, with the part if the source names one: `book.xlsx#Sheet`.
    """

    path: Path
    part: str
    kind: str
    name: str


def locate(source: str | Path) -> FileSource | None:
    """Return the file that a source names, as `FILE` or `FILE#PART`; None if there is none.

    Args:
        source: source of rows, as in `data.train`.
    """
    if url := remote_url(source):
        whole = "#" not in url or is_there(local_path(url))
        name, mark, part = (url, "", "") if whole else url.rpartition("#")
        source = f"{fetched(name)}{mark}{part}"
    path, part = Path(source), ""
    if not is_there(path) and "#" in str(source):
        name, _, part = str(source).rpartition("#")
        path = Path(name)
    if not is_there(path) or path.is_dir():
        return None
    refuse_pipe(path)
    suffix = path.suffix.lower()
    kind = Path(path.stem).suffix.lower() if suffix == ".gz" else suffix
    row_name = f"{path.name}#{part}" if part else path.name
    if part and kind not in PARTED:
        raise DataError(f"{source}: a {kind} file has no parts; use {path}")
    if suffix == ".gz":
        return FileSource(path, part, kind, row_name)
    if suffix == ".zip":
        member = _member(path, part)
        return FileSource(path, member, Path(member).suffix.lower(), row_name)
    return FileSource(path, part, suffix, row_name)


def _members(path: Path) -> list[str]:
    try:
        names = open_zip(path.read_bytes()).namelist()
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    return [name for name in names if not name.endswith("/") and not any(added in name for added in ADDED)]


def _member(path: Path, part: str) -> str:
    """Return the named or only file of a zip archive; raise DataError that lists its files if there is none."""
    names = _members(path)
    if part and part not in names:
        raise DataError(f"{path}: no file {part!r}; files here: {first_names(names, 5) or 'none'}")
    if part:
        return part
    if len(names) != 1:
        fix = f"name one, such as '{path}#{names[0]}'" if names else "give an archive with one file of rows"
        raise DataError(f"{path}: expected one file in the archive, got {len(names)} ({first_names(names, 5)}); {fix}")
    return names[0]


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text file of rows.

    Attributes:
        path: the file.
        name: its name, as locations of rows use it.
        text: the decoded text; None for UTF-8, which is streamed.
        note: how it was unpacked and decoded; empty for plain UTF-8.
    """

    path: Path
    name: str
    text: str | None = None
    note: str = ""

    def lines(self, newline: Literal["", "\n"]) -> Generator[str, None, None]:
        """Yield the lines with their line ends.

        Args:
            newline: as in `open`; the empty text also splits at carriage returns.
        """
        if self.text is not None:
            yield from io.StringIO(self.text, newline=newline)
            return
        try:
            with self.path.open(encoding="utf-8-sig", newline=newline) as file:
                yield from file
        except OSError as error:
            raise unreadable(self.path, error) from error

    def open_bytes(self) -> BinaryIO:
        """Open the text as UTF-8; the caller closes the file. A byte order mark is skipped."""
        if self.text is not None:
            return io.BytesIO(self.text.encode())
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise unreadable(self.path, error) from error
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        return file

    def read(self) -> str:
        """Return the whole text, without a byte order mark."""
        with self.open_bytes() as file:
            return self.text if self.text is not None else file.read().decode()


def open_text(source: FileSource) -> TextFile:
    """Unpack a text file if necessary and find its encoding.

    Args:
        source: the file.

    Raises:
        DataError: the file is empty, cannot be read or unpacked, or is not text.
    """
    packed = source.path.suffix.lower() in PACKED
    if not packed and (blank := _is_utf8(source.path)) is not None:
        if blank:
            raise DataError(f"{source.path}: empty; give a file with at least one row")
        return TextFile(source.path, source.name)
    data = _unpacked(source)
    if not data.removeprefix(codecs.BOM_UTF8).strip():
        raise DataError(f"{source.path}: empty; give a file with at least one row")
    text, encoding = _decoded(data, source.name)
    read_as = f"unpacked {source.part or source.path.stem}" if packed else ""
    return TextFile(source.path, source.name, text, ", ".join(filter(None, [read_as, encoding])))


def _is_utf8(path: Path) -> bool | None:
    """Return whether a UTF-8 file is blank; None if it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    blank = True
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                text = decoder.decode(block)
                if blank and _wide(block):
                    return None
                blank = blank and not text.strip()
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    return blank


def _wide(data: bytes) -> str:
    """Return the encoding of text in UTF-16 or UTF-32; empty if it is another one."""
    if marked := next((name for marks, name in WIDE_MARKS if data.startswith(marks)), ""):
        return marked
    start = data[:SAMPLE]
    if start.count(0) < ZERO_SHARE * len(start):
        return ""
    # The upper half of the four bytes of a letter is zero, except that of an emoji.
    for name, upper in (("utf-32-le", start[2::4] + start[3::4]), ("utf-32-be", start[::4] + start[1::4])):
        if upper.count(0) > UPPER_ZEROS * len(upper):
            return name
    return "utf-16-le" if start[1::2].count(0) > start[::2].count(0) else "utf-16-be"


def _unpacked(source: FileSource) -> bytes:
    path = source.path
    try:
        if path.suffix.lower() == ".zip":
            return read_part(open_zip(path.read_bytes()), source.part)
        if path.suffix.lower() != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            data = file.read(MOST_UNPACKED + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: broken gzip file ({error}); download it again") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > MOST_UNPACKED:
        raise DataError(f"{path}: unpacks to more than {MOST_UNPACKED // 2**30} GiB; split it")
    return data


def _decoded(data: bytes, name: str) -> tuple[str, str]:
    """Decode text in any encoding; return it with a note on an encoding other than UTF-8."""
    with suppress(UnicodeDecodeError):
        if wide := _wide(data):
            return data.decode(wide).removeprefix("\ufeff"), f"decoded from {wide.upper()}"
    try:
        return data.decode("utf-8-sig"), ""
    except UnicodeDecodeError as error:
        broken = error
    try:
        text, note = decode(data)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    if LOST in text:
        line = data.count(b"\n", 0, broken.start) + 1
        raise DataError(
            f"{name}:{line}: byte 0x{data[broken.start]:02x} is not UTF-8, as the rest of the file is; "
            "correct this character or save the file as UTF-8"
        )
    return text.removeprefix("\ufeff"), note
