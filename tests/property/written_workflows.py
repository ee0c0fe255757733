"""Workflows written in every style that people have: what `grants infer --write` must take as it comes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from hypothesis import strategies as st

from orchestrator.grants.privileges import ALL_COLUMNS, COLUMN_VERBS, TABLE_VERBS, Constant, Privilege, RowLimit, merge
from orchestrator.inference import yaml_text

TEXTS = ["id", "name", "true", "größe", "a b", "it's", "#", "Select", 'say "x"', "日本", "a: b", "- x", "&a", "😀"]
names = st.sampled_from(TEXTS) | st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), min_size=1, max_size=6
).filter(lambda text: "${{" not in text and text != "*")
constants: st.SearchStrategy[Constant] = st.integers(-9, 9) | st.booleans() | st.sampled_from(TEXTS)


@st.composite
def privileges(draw: st.DrawFn, *, limited: bool = False) -> Privilege:
    """A privilege on one of few tables, so that what is declared and what is inferred often meet."""
    verb = draw(st.sampled_from([*TABLE_VERBS, "execute", "usage"]))
    name = draw(st.sampled_from(["a", "b", "c", 'The "C"', "long_" * 10]))
    if verb == "execute":
        return Privilege(verb, "shop", draw(st.sampled_from(["f(integer)", "g(text, text[])", '"G"()'])))
    columns: tuple[str, ...] = ()
    if verb in COLUMN_VERBS:
        columns = ALL_COLUMNS if draw(st.booleans()) else tuple(sorted(draw(st.sets(names, min_size=1, max_size=4))))
    rows = draw(st.dictionaries(st.sampled_from(["id", "größe"]), constants, max_size=2)) if limited else {}
    where = tuple(RowLimit(*limit) for limit in sorted(rows.items())) if verb in TABLE_VERBS else ()
    return Privilege(verb, "shop", name, columns, where)


@st.composite
def declarations(draw: st.DrawFn) -> list[Privilege]:
    """The lines of a grant; the same verb on the same table with the same rows may be in two of them."""
    found: list[Privilege] = []
    for privilege in draw(st.lists(privileges(limited=True), min_size=1, max_size=4)):
        try:
            merge([*found, privilege])
        except ValueError:  # with other rows
            continue
        found.append(privilege)
    return found


inferences = st.lists(privileges(), min_size=1, max_size=4).map(merge)


@dataclass
class Style:
    """How one file is written. Every comment is another one, so that a lost one is missed."""

    draw: st.DrawFn
    comments: list[str] = field(default_factory=list)

    def maybe(self) -> bool:
        return self.draw(st.booleans())

    def comment(self) -> str:
        text = self.draw(st.sampled_from(["", " why", " a: b, [c] # d", " 'x", ' "', " größe 😀", "- &a *b {"]))
        self.comments.append(f"#{len(self.comments)}#{text}")
        return self.comments[-1]

    def behind(self) -> str:
        """What may stand at the end of a line."""
        return (
            f"{self.draw(st.sampled_from([' ', '   ']))}{self.comment()}" if self.draw(st.integers(0, 3)) == 0 else ""
        )

    def between(self, indent: int) -> str:
        """What may stand between two lines."""
        kind = self.draw(st.integers(0, 5))
        return f"{' ' * indent}{self.comment()}\n" if kind == 0 else "\n" if kind == 1 else ""

    def blank(self, indent: int) -> str:
        """Between two things within brackets: nothing, blanks, or a new line."""
        kind = self.draw(st.integers(0, 5))
        if kind == 0:
            return f"{self.behind()}\n{self.between(indent)}{' ' * indent}"
        return " " if kind < 4 else "" if kind == 4 else "  "

    def scalar(self, text: str, *, below: int = 0) -> str:
        """A text in any way that is read as the same. `below`: how far its lines are indented, if it may have some."""
        kind = self.draw(st.integers(0, 5))
        if kind == 0 and text.isprintable():
            return f"'{text.replace(chr(39), chr(39) * 2)}'"
        if kind == 1 and text.isprintable():
            return json.dumps(text, ensure_ascii=False)
        if kind == 2:
            return f"!!str {yaml_text.scalar(text)}"
        if kind == 3 and below and text.isprintable() and text.strip() == text and text[:1] not in "#":
            head = self.draw(st.sampled_from(["|-", ">-"]))
            return f"{head}{self.behind()}\n{' ' * below}{text}"
        return yaml_text.scalar(text)

    def key(self, text: str) -> str:
        return self.draw(st.sampled_from([text, text, f'"{text}"', f"'{text}'"]))

    def value(self, value: object, *, indent: int) -> str:
        """A value in brackets, over one line or several."""
        match value:
            case dict():
                parts = [f"{self.key(key)}: {self.value(each, indent=indent)}" for key, each in value.items()]
                return self.brackets("{", parts, "}", indent)
            case list():
                return self.brackets("[", [self.value(each, indent=indent) for each in value], "]", indent)
            case str():
                return self.scalar(value)
        return json.dumps(value)

    def brackets(self, opening: str, parts: list[str], closing: str, indent: int) -> str:
        text = opening
        for number, part in enumerate(parts):
            text += f"{self.blank(indent)}{part}{self.blank(indent)}"
            text += "," if number + 1 < len(parts) or self.draw(st.integers(0, 4)) == 0 else ""
        return f"{text}{self.blank(indent)}{closing}"

    def item(self, privilege: Privilege, indent: int) -> str:
        """A privilege as an item of a block, with its end of line."""
        parts = list(privilege.as_json().items())
        if self.draw(st.integers(0, 4)) == 0:
            return f"{' ' * indent}- {self.value(dict(parts), indent=indent + 4)}{self.behind()}\n"
        if self.maybe():
            parts.reverse()
        text = f"{' ' * indent}-"
        if self.maybe():
            text += (
                f" {self.draw(st.sampled_from(['', '!!map']))}{self.behind()}\n{self.between(0)}{' ' * (indent + 2)}"
            )
        else:
            text += " "
        for number, (key, value) in enumerate(parts):
            text += " " * (indent + 2) if number else ""
            text += f"{self.draw(st.sampled_from([self.key(key), f'!!str {key}']))}:"
            text += self.block_value(value, indent + 2)
            text += self.between(indent + 2) if number + 1 < len(parts) else ""
        return text

    def block_value(self, value: object, indent: int) -> str:
        if isinstance(value, list) and self.maybe():
            tag = self.draw(st.sampled_from(["", " !!seq"]))
            deeper = indent + self.draw(st.sampled_from([0, 2, 3]))
            text = f"{tag}{self.behind()}\n"
            for each in value:
                text += f"{self.between(deeper)}{' ' * deeper}- {self.scalar(each, below=deeper + 2)}\n"
            return text
        if isinstance(value, str):
            return f" {self.scalar(value, below=indent + 2)}\n"
        return f" {self.value(value, indent=indent + 4)}{self.behind()}\n"

    def grants(self, declared: list[Privilege]) -> str:
        """The grants of a step, at the indentation of its keys."""
        if self.draw(st.integers(0, 2)) == 0:
            content = {"kind": "database", "connection": "c", "privileges": [each.as_json() for each in declared]}
            return f"    grants: {self.value({'db': content}, indent=8)}{self.behind()}\n"
        text = f"    grants:{self.behind()}\n{self.between(0)}      db:{self.behind()}\n        kind: database\n"
        text += f"        connection: c{self.behind()}\n        {self.key('privileges')}:"
        if self.draw(st.integers(0, 3)) == 0:
            text += f" {self.value([each.as_json() for each in declared], indent=12)}{self.behind()}\n"
        else:
            indent = self.draw(st.sampled_from([8, 10, 13]))
            text += f"{self.draw(st.sampled_from(['', ' !!seq']))}{self.behind()}\n"
            text += "".join(f"{self.between(indent)}{self.item(each, indent)}" for each in declared)
        return text + self.between(0)


@dataclass(frozen=True)
class Written:
    """A file, and what its steps need. `around` are its parts that no edit may touch, in their order."""

    text: str
    inferred: dict[str, tuple[Privilege, ...]]
    around: tuple[str, ...]
    comments: tuple[str, ...]


HEAD = "version: 1  # one\nname: 'small'\n\nagent:   tester\nsteps:\n  # first\n"
ROLE = "    grants:\n      db: {kind: database, connection: c, role: by-hand}  # the role\n"


@st.composite
def files(draw: st.DrawFn) -> Written:
    """One to three steps: with a grant, with one that an admin maintains, with none; any line ends, or mixed ones."""
    style = Style(draw)
    around, text, inferred = [HEAD], HEAD, {}
    for number in range(draw(st.integers(1, 3))):
        begin = f"  step{number}:\n    action: postgres.query  # it {number}\n"
        kind = draw(st.sampled_from(["compiled", "compiled", "compiled", "role", "none"]))
        middle = style.grants(draw(declarations())) if kind == "compiled" else ROLE if kind == "role" else ""
        end = f"    with: {{ sql: x,  parameters: {{}} }} # the SQL of {number}\n\n"
        inferred[f"step{number}"] = draw(inferences)
        around += [begin, end]
        text += begin + middle + end
    text = text if draw(st.booleans()) else text.removesuffix("\n\n")
    around[-1] = around[-1] if text.endswith("\n\n") else around[-1].removesuffix("\n\n")
    ends = draw(st.sampled_from([["\n"], ["\r\n"], ["\r"], ["\n", "\r\n"], ["\r\n", "\r"]]))
    if len(ends) > 1:
        parts = re.split("(\n)", text)
        text = "".join(draw(st.sampled_from(ends)) if part == "\n" else part for part in parts)
    else:
        text = text.replace("\n", ends[0])
    return Written(text, inferred, tuple(around), (*style.comments, "# one", "# first"))
