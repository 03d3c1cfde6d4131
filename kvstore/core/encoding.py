"""Unambiguous bytes for hashing: every field carries its type and its length."""

from __future__ import annotations


def encode_fields(domain: str, *fields: str | int | bytes) -> bytes:
    """`domain` then `fields`, each as type (1 byte), length (8 bytes, little endian), content.

    Two different argument lists never encode to the same bytes: ("ab", "c") differs from ("a",
    "bc"), 1 from "1", and every use has a domain of its own.
    """
    parts = []
    for field in (domain, *fields):
        match field:
            case str():
                kind, content = b"s", field.encode()
            case int():
                kind, content = b"i", str(int(field)).encode()
            case bytes():
                kind, content = b"b", field
        parts += [kind, len(content).to_bytes(8, "little"), content]
    return b"".join(parts)
