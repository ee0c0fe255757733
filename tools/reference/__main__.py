"""`python -m tools.reference` writes the pages; with `--check` it says which of them are not what it would write."""

from __future__ import annotations

import sys

from tools.reference.pages import FOLDER, pages


def main(arguments: list[str]) -> int:
    """0; with `--check`, 1 where a page is missing, out of date, or not one of these."""
    wanted = pages()
    there = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
    if "--check" in arguments:
        stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
        if stale:
            sys.stderr.write(f"not as the code is: {', '.join(stale)}; run `make reference`\n")
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name in there.keys() - wanted.keys():
        (FOLDER / name).unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
