"""What the site makes of links that leave `docs/`: a hook of MkDocs (its user guide, under Configuration, `hooks`).

A page links to files of the repository as the forge needs it (`../workflows/policies`). On the site each of these is a
page of its own below `repository/`: Markdown as it is, any other file as a block of code, a folder as a list of what it
holds. What is nowhere stays as it is written, and is a dead link for MkDocs, which `--strict` makes an error.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
DOCS = "docs"
BESIDE = "repository"
"""The folder of the site that holds what is not in `docs/`."""

_CODE = re.compile(r"^(`{3,}).*?^\1`*$|(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_LANGUAGES = {
    ".yaml": "yaml",
    ".yml": "yaml",
    ".rego": "rego",
    ".json": "json",
    ".hcl": "hcl",
    ".py": "python",
    ".toml": "toml",
    ".sh": "sh",
}


def on_files(files: Any, config: Any) -> Any:
    """Add a page for every file and folder outside of `docs/` that a page links to, and for what these link to."""
    known = {file.src_uri for file in files}
    waiting = [(f"{DOCS}/{file.src_uri}", Path(file.abs_src_path).read_text()) for file in files.documentation_pages()]
    while waiting:
        origin, text = waiting.pop()
        for path in sorted(linked(text, origin)):
            uri = site_uri(path)
            if path.split("/")[0] != DOCS and uri not in known:
                known.add(uri)
                content = content_of(path)
                files.append(File.generated(config, uri, content=content))
                waiting.append((page_path(path), content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page with its links as the site needs them."""
    return rewritten(markdown, page.file.src_uri)


def rewritten(text: str, uri: str) -> str:
    """The text of the page at `uri` of the site, with what it links to in the repository as pages of the site."""
    origin = origin_of(uri)

    def target(link: re.Match[str]) -> str:
        path = resolved(link[2], origin)
        if path is None or not (ROOT / path).exists():
            return link[0]
        return f"{link[1]}{posixpath.relpath(site_uri(path), posixpath.dirname(uri))}{link[3] or ''}{link[4]}"

    return "".join(part if is_code else _LINK.sub(target, part) for is_code, part in _parts(text))


def linked(text: str, origin: str) -> set[str]:
    """The files and folders of the repository that a text at `origin` links to, as paths below its root."""
    found = (
        resolved(link[2], origin) for is_code, part in _parts(text) if not is_code for link in _LINK.finditer(part)
    )
    return {path for path in found if path is not None and (ROOT / path).exists()}


def resolved(target: str, origin: str) -> str | None:
    """What a link means, as a path below the root of the repository; None for another origin, or what is above."""
    if re.match(r"[a-z][a-z0-9+.-]*:|/", target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    return None if path.startswith("..") else path


def site_uri(path: str) -> str:
    """Where a file or folder of the repository is on the site."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    return f"{BESIDE}/{page_path(path)}"


def page_path(path: str) -> str:
    """The path of the page that shows a file or folder: itself where it is Markdown."""
    if (ROOT / path).is_dir():
        return f"{path}/index.md"
    return path if path.endswith(".md") else f"{path}.md"


def origin_of(uri: str) -> str:
    """The path in the repository of what a page of the site shows, or of where its links begin."""
    return uri.removeprefix(f"{BESIDE}/") if uri.startswith(f"{BESIDE}/") else f"{DOCS}/{uri}"


def content_of(path: str) -> str:
    """A file or folder of the repository as Markdown."""
    place = ROOT / path
    if place.is_dir():
        names = sorted(each.name for each in place.iterdir() if each.name != "__pycache__")
        return f"# {path}/\n\n" + "\n".join(f"- [`{name}`]({name})" for name in names) + "\n"
    text = place.read_text()
    if path.endswith(".md"):
        return text
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"# {path}\n\n{fence}{_LANGUAGES.get(place.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """The text in its order, with whether each part is code, in which nothing is a link."""
    rest = 0
    for code in _CODE.finditer(text):
        yield False, text[rest : code.start()]
        yield True, code[0]
        rest = code.end()
    yield False, text[rest:]
