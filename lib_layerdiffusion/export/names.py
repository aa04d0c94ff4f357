"""The rules for the names of written files."""

from __future__ import annotations

import unicodedata

SLUG_BYTES = 80  # of UTF-8; leaves room for seed, role and number in the 255 that common file systems allow


def slug(text: str) -> str:
    """Turn a prompt into a part of a file name that every file system accepts: lower-case words joined by '-'."""
    kept = "".join(c if c.isalnum() else "-" for c in unicodedata.normalize("NFC", text.lower()))
    joined = "-".join(word for word in kept.split("-") if word)
    short = joined.encode("utf-8", "ignore")[:SLUG_BYTES].decode("utf-8", "ignore")
    return short.strip("-") or "image"
