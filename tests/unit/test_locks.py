"""The locks: what is installed is what pyproject.toml asks for, by a hash, from wherever it is fetched."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from orchestrator.doctor.machine import PACKAGES

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {path.stem: path for path in sorted((ROOT / "requirements").glob("*.txt"))}
EXTRAS = {"runtime": {"serve", "ui"}, "dev": {"dev", "dev-stack"}}
HINT = "dependencies and locks differ: `make lock`"


def entries(lock: Path) -> list[tuple[Requirement, list[str]]]:
    """Each locked requirement with its hashes."""
    text = re.sub(r"\\\n\s*", " ", lock.read_text())
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        requirement, *hashes = re.split(r"\s+--hash=", line)
        found.append((Requirement(requirement), hashes))
    return found


def asked(extras: set[str]) -> Iterator[Requirement]:
    """What pyproject.toml asks for with these extras, those that they name included."""
    for text in PROJECT["project"]["dependencies"]:
        yield Requirement(text)
    seen: set[str] = set()
    while more := extras - seen:
        seen |= more
        for extra in more:
            for requirement in map(Requirement, PROJECT["project"]["optional-dependencies"][extra]):
                if requirement.name == PROJECT["project"]["name"]:
                    extras = extras | requirement.extras
                else:
                    yield requirement


ENVIRONMENTS = [
    {**default_environment(), "python_version": f"3.{minor}", "python_full_version": f"3.{minor}.1", **system}
    for minor in (11, 12, 13, 14)
    for system in (
        {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
        {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
    )
]


def locked(lock: str, environment: dict[str, str]) -> dict[str, str]:
    """The versions that one machine installs."""
    versions: dict[str, str] = {}
    for requirement, _ in entries(LOCKS[lock]):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in versions, f"{name} is locked twice for {environment}"
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            versions[name] = specifier.version
    return versions


@pytest.mark.parametrize("lock", EXTRAS)
def test_every_machine_installs_what_is_asked_for(lock: str) -> None:
    for environment in ENVIRONMENTS:
        versions = locked(lock, environment)
        for requirement in asked(EXTRAS[lock]):
            version = versions.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement} is not locked; {HINT}"
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version}; {HINT}"


@pytest.mark.parametrize("name", ["build", "tools"])
def test_the_tools_are_those_that_are_asked_for(name: str) -> None:
    versions = locked(name, ENVIRONMENTS[0])
    wanted = [line for line in (ROOT / "requirements" / f"{name}.in").read_text().splitlines() if line[0] != "#"]
    wanted += PROJECT["build-system"]["requires"] if name == "build" else []
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), HINT


@pytest.mark.parametrize("lock", LOCKS)
def test_everything_has_a_hash_and_names_no_place(lock: str) -> None:
    for requirement, hashes in entries(LOCKS[lock]):
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), requirement
        assert requirement.url is None
    assert not re.search(r"://|--index|--find-links|--trusted-host", LOCKS[lock].read_text())


def test_what_runs_in_production_is_what_is_tested() -> None:
    for environment in ENVIRONMENTS:
        tested = locked("dev", environment)
        assert {name: tested.get(name) for name in locked("runtime", environment)} == locked("runtime", environment)


def test_nothing_is_installed_past_the_locks() -> None:
    for file in ("Makefile", "Dockerfile"):
        text = re.sub(r"\\\n\s*", " ", (ROOT / file).read_text())
        for line in re.findall(r"pip (?:install|wheel) .*", text):
            for command in line.split("&&"):
                assert "--require-hashes" in command or "--no-deps" in command, command
    assert {"runtime", "build"} <= {name for name in LOCKS if f"{name}.txt" in (ROOT / "Dockerfile").read_text()}
    assert "!requirements" in (ROOT / ".dockerignore").read_text().splitlines()


@pytest.mark.parametrize("extra", sorted(PACKAGES))
def test_the_doctor_knows_what_an_extra_brings(extra: str) -> None:
    """Both sides by the name of what is installed; a namespace such as `opentelemetry` is of many."""
    of_package = packages_distributions()
    known = {canonicalize_name(name) for each in PACKAGES[extra] for name in of_package[each.partition(".")[0]]}
    brought = {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["optional-dependencies"][extra]}
    assert brought <= known, "the doctor would not say that it is missing"
    assert known <= brought or "." in "".join(PACKAGES[extra]), "the doctor would ask for what the extra does not bring"


def test_the_doctor_knows_every_extra_but_those_of_developers() -> None:
    assert set(PROJECT["project"]["optional-dependencies"]) - set(PACKAGES) == {"dev", "docs"}
