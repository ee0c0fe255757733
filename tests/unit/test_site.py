"""The site of the documentation: it builds strictly, loads nothing from elsewhere, and dead links are noticed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bench import ROOT

from tools import site
from tools.reference.markdown import slug

BUILT = ("docs", "orchestrator", "workflows", "vault", "deploy", "benchmarks", "tools", "tests")


def build(root: Path, to: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(to)]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("site")
    ended = build(ROOT, to)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return to


def test_every_page_of_the_documentation_is_on_the_site(built: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (built / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file() or page.name == "README.md", (
            page
        )


def test_nothing_is_loaded_from_another_origin(built: Path) -> None:
    loaded = r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//|url\([\"']?(?:https?:)?//|@import"
    for file in (*built.rglob("*.html"), *built.rglob("*.css")):
        found = re.search(loaded, re.sub(r"<link rel=\"?canonical\"?[^>]*>", "", file.read_text()))
        assert found is None, f"{file.relative_to(built)}: {found and found[0]}"


def test_files_of_the_repository_are_pages_that_show_them(built: Path) -> None:
    rego = (built / "repository/workflows/policies/shape.rego.html").read_text()
    assert "package" in rego
    assert 'href="repository/workflows/policies/index.html"' in (built / "policies.html").read_text()
    assert "shape.rego" in (built / "repository/workflows/policies/index.html").read_text()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    root = tmp_path / "copy"
    root.mkdir()
    for name in BUILT:
        if name == "tests":  # they hold what must not lie about in any file that a test has written
            (root / name).symlink_to(ROOT / name)
        else:
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.md"), *ROOT.glob("*.yml"), ROOT / "LICENSE", ROOT / "pyproject.toml"):
        shutil.copy(file, root)
    return root


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("[x](nowhere.md)", "nowhere.md"),
        ("[x](policies.md#no-such-heading)", "no-such-heading"),
        ("[x](../workflows/no-such.yaml)", "no-such.yaml"),
        ("[x](../SECURITY.md#no-such-heading)", "no-such-heading"),
    ],
)
def test_a_dead_link_or_anchor_fails_the_build(copied: Path, tmp_path: Path, written: str, said: str) -> None:
    with (copied / "docs" / "tasks.md").open("a") as page:
        page.write(f"\n{written}\n")
    ended = build(copied, tmp_path / "site")
    assert ended.returncode != 0
    assert "Aborted with 1 warnings" in ended.stdout + ended.stderr
    assert said in ended.stdout + ended.stderr


def test_links_are_rewritten_but_not_those_in_code() -> None:
    text = "[a](../README.md#settings) `[b](../README.md)`\n```text\n[c](../README.md)\n```\n[d](tools.md) [e](https://x.y)"
    assert site.rewritten(text, "policies.md") == text.replace("[a](../README.md", "[a](repository/README.md")
    assert site.rewritten("[a](docs/tools.md)", "repository/README.md") == "[a](../tools.md)"
    assert site.rewritten("[a](../LICENSE)", "tools.md") == "[a](repository/LICENSE.md)"


PAGES = [
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
    *sorted(path.name for path in ROOT.glob("*.md")),
    "benchmarks/README.md",
]


def headings(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    plain = "".join("" if is_code and part.startswith("```") else part for is_code, part in site._parts(text))
    return {slug(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)) for title in re.findall(r"^#+ (.+?)$", plain, re.M)}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_is_right_on_the_forge(page: str) -> None:
    text = (ROOT / page).read_text()
    for is_code, part in site._parts(text):
        for target, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", "" if is_code else part):
            path = site.resolved(target, page) if target else page
            if path is not None:
                assert (ROOT / path).exists(), f"{page} links to {target}"
                if anchor and path.endswith(".md"):
                    assert anchor in headings((ROOT / path).read_text()), f"{page} links to {target}#{anchor}"
