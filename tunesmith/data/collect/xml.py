"""XML from files of others: no document type, so no entities of their own making; no network."""

from __future__ import annotations

from typing import Any

from tunesmith.errors import DataError


def parse_xml(data: bytes, *, part: str) -> Any:
    """The root element of a part. Raises DataError for broken XML and for XML that declares entities."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, recover=False)
    try:
        root = etree.fromstring(data, parser=parser)
    except etree.XMLSyntaxError as error:
        raise DataError(f"its part {part} is no whole XML ({error.msg}); get it again, or save it anew") from error
    info = root.getroottree().docinfo
    if info.internalDTD is not None and any(True for _ in info.internalDTD.iterentities()):
        raise DataError(f"its part {part} declares entities, which no document needs; save it anew")
    return root
