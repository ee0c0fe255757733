"""The wheel of this checkout, installed where nothing of the checkout and of the extras can be found.

No index is needed: hatchling builds it, and the packages that it requires are links to those of this environment, each
by name. What none of them requires, such as the packages of the extras, cannot be imported there.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

from bench import ROOT, surroundings
from packaging.requirements import Requirement

PROJECT = "credential-orchestrator"


def build(folder: Path) -> Path:
    """Build the wheel."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=surroundings(), capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def required(extras: Iterable[str] = ()) -> dict[str, Distribution]:
    """The packages that the project with these extras requires, what those require, and so on."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    pending = [(PROJECT, frozenset(extras))]
    while pending:
        name, wanted = pending.pop()
        key = name.lower().replace("_", "-")
        if (key, wanted) in seen:
            continue
        seen.add((key, wanted))
        found[key] = distribution(name)
        for text in found[key].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *wanted)
            ):
                pending.append((requirement.name, frozenset(requirement.extras)))
    del found[PROJECT]
    return found


@dataclass(frozen=True, slots=True)
class Installed:
    """A virtual environment with the wheel in it."""

    folder: Path

    @property
    def bin(self) -> Path:
        """Where its commands are."""
        return self.folder / "bin"

    @property
    def packages(self) -> Path:
        """Where its packages are."""
        (found,) = self.folder.glob("lib/python3*/site-packages")
        return found

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """Variables under which its commands are found, with nothing of ours, and these."""
        return {"PATH": f"{self.bin}:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(self.folder), **more}

    def run(self, *command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """One command of it, in a folder."""
        program = [str(self.bin / command[0]), *command[1:]]
        environment = self.environment(variables)
        return subprocess.run(program, cwd=cwd, env=environment, capture_output=True, text=True, timeout=180)


def install(wheel: Path, folder: Path, *, extras: Iterable[str] = ()) -> Installed:
    """Install a wheel into a new virtual environment, beside links to what it requires with these extras."""
    venv.create(folder, with_pip=False, symlinks=True)
    installed = Installed(folder)
    for package in required(extras).values():
        for name in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = installed.packages / name
            if not link.is_symlink():
                link.symlink_to(Path(str(package.locate_file(name))))
    pip = [sys.executable, "-m", "pip", "--python", str(installed.bin / "python"), "install", "--quiet"]
    options = ["--no-index", "--no-deps", "--disable-pip-version-check", str(wheel)]
    done = subprocess.run([*pip, *options], env=surroundings(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return installed
