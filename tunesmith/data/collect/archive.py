"""Zip files (docx, pptx, epub) opened with bounds, so that no small file unpacks into a full memory."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib

from tunesmith.errors import DataError

MOST_BYTES, MOST_PART, MOST_PARTS = 512 * 2**20, 128 * 2**20, 20_000
# What opening and unpacking raise where bytes are missing or wrong, or packed by a method that zipfile lacks.
BROKEN = (
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
)
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def open_zip(data: bytes) -> zipfile.ZipFile:
    """The archive, if what it says it unpacks to is bounded; Python reads no more of a part than that.

    Raises DataError for what is encrypted, broken or too large.
    """
    if data.startswith(OLE):
        raise DataError("encrypted, or of the format before 2007; open it, remove the password and save it anew")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        parts = archive.infolist()
    except BROKEN as error:
        raise DataError("broken, no whole zip archive; get it again, or open and save it anew") from error
    if any(part.flag_bits & 1 for part in parts):
        raise DataError("encrypted; remove the password and save it anew")
    largest, total = max((part.file_size for part in parts), default=0), sum(part.file_size for part in parts)
    if len(parts) > MOST_PARTS or largest > MOST_PART or total > MOST_BYTES:
        raise DataError(f"unpacks to {total / 2**20:.0f} MiB in {len(parts)} parts, too much for a document; split it")
    return archive


def read_part(archive: zipfile.ZipFile, name: str) -> bytes:
    """One part of the archive. Raises DataError where it is absent or broken."""
    try:
        return archive.read(name)
    except KeyError:
        raise DataError(f"has no {name}, so it is not of its kind; give a file of its real kind") from None
    except BROKEN as error:
        raise DataError(f"its part {name} is broken; get it again, or open and save it anew") from error
