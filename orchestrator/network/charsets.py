"""Which character sets the labels of answers name (WHATWG Encoding, 4.2)."""

from __future__ import annotations

import codecs
from functools import cache


@cache
def known_character_sets() -> frozenset[str]:
    """Python's names of those of the web. Looking them up loads a module for each: not before one is asked for."""
    labels = (
        *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "ascii"),
        *(f"iso8859-{part}" for part in (*range(1, 12), *range(13, 17))),
        *(f"cp{page}" for page in (437, 850, 852, 858, 866, 874, 932, 949, 950, *range(1250, 1259))),
        *("koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", "tis-620"),
        *("gb2312", "gbk", "gb18030", "big5", "big5hkscs", "shift_jis", "euc_jp", "iso2022_jp", "euc_kr", "johab"),
    )
    return frozenset(codecs.lookup(label).name for label in labels)


def character_set(label: str) -> str:
    """What to decode with: the character set that a label names, or UTF-8 where it names none.

    Python's codecs also know names that are no character sets (`undefined`, `idna`, `unicode_escape`, `base64`),
    which raise or give something else than the text: only those of the web are used (WHATWG Encoding, 4.2).
    """
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return "utf-8"
    return name if name in known_character_sets() else "utf-8"
