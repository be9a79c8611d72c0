"""Parsing of untrusted XML: entity declarations are rejected and nothing is fetched."""

from __future__ import annotations

from typing import Any

from tunesmith.errors import DataError


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
