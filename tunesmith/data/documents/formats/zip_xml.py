"""Bounded reading of zip archives (docx, pptx, epub), so that a small file cannot exhaust the memory."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from typing import Any

from tunesmith.errors import DataError

MOST_BYTES = 512 * 2**20  # bytes of all parts, unpacked
MOST_PART = 128 * 2**20  # bytes of one part, unpacked
MOST_PARTS = 20_000
# Raised by opening and unpacking if bytes are missing or wrong, or compressed by a method that zipfile lacks.
BROKEN = (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def open_zip(data: bytes) -> zipfile.ZipFile:
    """Open an archive whose declared unpacked size is bounded; zipfile reads no more of a part than it declares.

    Raises:
        DataError: the archive is encrypted, broken or too large.
    """
    if data.startswith(OLE):
        raise DataError("encrypted, or in a format from before 2007; remove the password and save it again")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        parts = archive.infolist()
    except BROKEN as error:
        raise DataError("broken or incomplete zip archive; download it again, or open it and save it again") from error
    if any(part.flag_bits & 1 for part in parts):
        raise DataError("encrypted file; remove the password and save it again")
    largest = max((part.file_size for part in parts), default=0)
    total = sum(part.file_size for part in parts)
    if len(parts) > MOST_PARTS or largest > MOST_PART or total > MOST_BYTES:
        raise DataError(
            f"unpacks to {total / 2**20:.0f} MiB in {len(parts)} parts (largest {largest / 2**20:.0f} MiB); split it"
        )
    return archive


def read_part(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read one part of the archive; raise DataError if it is missing or broken."""
    try:
        return archive.read(name)
    except KeyError:
        raise DataError(f"{name} is missing: not the file type of its extension; rename the file") from None
    except BROKEN as error:
        raise DataError(f"part {name} is broken; download the file again, or open it and save it again") from error


def parse_xml(data: bytes, *, part: str) -> Any:
    """Return the root element of a part; raise DataError for broken XML and for XML that declares entities."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, recover=False)
    try:
        root = etree.fromstring(data, parser=parser)
    except etree.XMLSyntaxError as error:
        raise DataError(f"part {part} is invalid XML ({error.msg}); download or save the file again") from error
    info = root.getroottree().docinfo
    if info.internalDTD is not None and any(True for _ in info.internalDTD.iterentities()):
        raise DataError(f"part {part} declares XML entities, rejected for safety; save the file again")
    return root
