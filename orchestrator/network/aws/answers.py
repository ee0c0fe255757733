"""What STS and IAM answer: XML of which a few texts are wanted, and of which nothing is trusted.

A document type is refused before anything of it is expanded, and depth and size are bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from xml.parsers import expat

LARGEST_ANSWER = 256 * 1024
"""Bytes. An answer to AssumeRole is 2 KiB, one to GetRolePolicy at most 30."""

_DEEPEST = 20
_MOST_ELEMENTS = 2_000
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9._]{0,99}")


class UnreadableAnswer(ValueError):
    """Not an answer of AWS's Query protocol."""


@dataclass(slots=True)
class _Reading:
    texts: dict[str, str] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    count: int = 0

    def begin(self, name: str, attributes: object) -> None:
        self.path.append(name.rpartition(":")[2])
        self.pieces = []
        self.count += 1
        if len(self.path) > _DEEPEST or self.count > _MOST_ELEMENTS:
            raise UnreadableAnswer("the answer is nested too deeply, or has too many parts")

    def characters(self, text: str) -> None:
        self.pieces.append(text)

    def end(self, name: str) -> None:
        place = "/".join(self.path)
        if place in self.texts:
            raise UnreadableAnswer("the answer says something twice")
        if text := "".join(self.pieces).strip():
            self.texts[place] = text
        self.path.pop()
        self.pieces = []


def texts_of(body: bytes) -> dict[str, str]:
    """The texts of an XML document by their places, such as `AssumeRoleResponse/AssumeRoleResult/Credentials/...`.

    Raises UnreadableAnswer for what is none, has a document type or entities, or says something twice.
    """
    if len(body) > LARGEST_ANSWER:
        raise UnreadableAnswer("the answer is too large")
    reading = _Reading()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = reading.begin
    parser.CharacterDataHandler = reading.characters
    parser.EndElementHandler = reading.end

    def refused(*about: object) -> int:
        raise UnreadableAnswer("the answer has a document type or entities")

    parser.StartDoctypeDeclHandler = refused
    parser.EntityDeclHandler = refused
    parser.UnparsedEntityDeclHandler = refused
    parser.ExternalEntityRefHandler = refused
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        if isinstance(error, UnreadableAnswer):
            raise
        raise UnreadableAnswer("the answer is not XML") from None
    return reading.texts


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an answer of an error says: AWS's code, and its words, which may come from anybody."""

    code: str
    message: str


def refusal_of(body: bytes) -> Refusal | None:
    """The error in an answer, or None where it is none of AWS's."""
    try:
        texts = texts_of(body)
    except UnreadableAnswer:
        return None
    for place, text in texts.items():
        if place in ("ErrorResponse/Error/Code", "Response/Errors/Error/Code", "Error/Code") and _CODE.fullmatch(text):
            return Refusal(text, " ".join(texts.get(f"{place.removesuffix('Code')}Message", "").split())[:500])
    return None
