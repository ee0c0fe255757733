"""Whose name it is: distributions that are really installed, in a process that sees them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from orchestrator import extensions

ROOT = Path(__file__).parents[2]
ALLOW_ALL = "orchestrator.policy.engines.allow_all:AllowAllEngine"


def distribution(folder: Path, name: str, group: str, entry: str, value: str = ALLOW_ALL) -> Path:
    info = folder / f"{name.replace('-', '_')}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry} = {value}\n")
    return folder


def loaded(group: str, name: str, *path: Path, first: bool = True) -> str:
    """What a fresh process loads under this name, with these folders before or behind all others."""
    where = f"sys.path[:0] = {list(map(str, path))}" if first else f"sys.path += {list(map(str, path))}"
    code = (
        f"import sys; {where}\n"
        "from orchestrator import extensions\nfrom orchestrator.errors import UsageError\n"
        f"try: print(extensions.load({group!r}, {name!r}))\nexcept UsageError as error: print('refused:', error)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return answer.stdout.strip()


GROUPS = {group: sorted(taken) for group, taken in extensions._BUILT_IN.items()}
NAMES = [(group, name) for group, taken in GROUPS.items() for name in taken]


@pytest.mark.parametrize(("group", "name"), [NAMES[0], NAMES[3], *NAMES[6:8], *NAMES[-2:]])
@pytest.mark.parametrize("first", [True, False])
def test_no_other_package_may_take_the_name_of_a_built_in_part(
    tmp_path: Path, group: str, name: str, first: bool
) -> None:
    answer = loaded(group, name, distribution(tmp_path, "zz-evil", group, name), first=first)
    assert answer.startswith(f"refused: the package `zz-evil` 1.5 registers `{name}` in {group}")


def test_a_name_that_is_taken_is_refused_also_where_another_one_is_asked_for(tmp_path: Path) -> None:
    group = "orchestrator.policy_engines"
    assert "`zz-evil`" in loaded(group, "rego", distribution(tmp_path, "zz-evil", group, "allow-all"))


def test_two_packages_with_one_name_are_told_by_name(tmp_path: Path) -> None:
    group = "orchestrator.actions"
    one = distribution(tmp_path / "1", "acme-steps", group, "acme.announce")
    two = distribution(tmp_path / "2", "other-steps", group, "acme.announce", "elsewhere:Announce")
    answer = loaded(group, "acme.announce", one, two)
    assert answer.startswith("refused: both `acme-steps` 1.5 and `other-steps` 1.5 register `acme.announce`")
    same = distribution(tmp_path / "3", "same-value", group, "acme.announce")
    assert "both `acme-steps` 1.5 and `same-value` 1.5" in loaded(group, "exec", one, same)


def test_a_package_with_a_name_of_its_own_is_found(tmp_path: Path) -> None:
    group = "orchestrator.policy_engines"
    assert "AllowAllEngine" in loaded(group, "acme-freeze", distribution(tmp_path, "acme", group, "acme-freeze"))
    other = distribution(tmp_path / "other", "acme-rego", "orchestrator.actions", "rego")
    assert "RegoEngine" in loaded(group, "rego", other)


def test_the_same_distribution_seen_twice_is_one(tmp_path: Path) -> None:
    group = "orchestrator.actions"
    twice = [distribution(tmp_path / number, "acme-steps", group, "acme.announce") for number in "12"]
    assert "AllowAllEngine" in loaded(group, "acme.announce", *twice)


def test_a_distribution_that_only_looks_like_ours_is_another_one(tmp_path: Path) -> None:
    group = "orchestrator.issuers"
    for number, name in enumerate(("credential-orchestrator2", "credentialorchestrator", "x-credential-orchestrator")):
        assert f"`{name}`" in loaded(group, "database", distribution(tmp_path / str(number), name, group, "database"))


def test_a_distribution_that_calls_itself_ours_cannot_bring_code_of_its_own(tmp_path: Path) -> None:
    group = "orchestrator.policy_engines"
    spoof = distribution(tmp_path, "Credential_Orchestrator", group, "rego", "evil_orchestrator:Engine")
    assert loaded(group, "rego", spoof).startswith("refused: the package `Credential_Orchestrator` 1.5")


def test_the_names_that_are_ours_are_those_that_are_registered() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == extensions._OURS
    registered = project["entry-points"]
    assert {group: sorted(registered[group]) for group in registered} == GROUPS
