"""What rules a step's declarations come to, by the version of the kernel's interface."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.actions.confinement import PARTS, Confinement, parts_of
from orchestrator.actions.process.confined import ConfinedParams, ports_of
from orchestrator.actions.process.exec import Exec, ExecParams
from orchestrator.actions.process.python import Python, PythonParams
from orchestrator.actions.process.rules import Reach, order_of, program_paths, virtual_environment
from orchestrator.errors import StepFailed


@pytest.mark.parametrize(
    ("address", "ports"),
    [
        ("postgresql://db.example:5433/support", (5433,)),
        ("postgresql://db.example/support", (5432,)),
        ("postgresql+psycopg://user@[::1]:6000/x", (6000,)),
        ("postgresql://a:1,b:2,c/support?target_session_attrs=any", (1, 2, 5432)),
        ("host=db.example port=5434 dbname=x", (5434,)),
        ("host=a,b port=7,8", (7, 8)),
        ("dbname=x", (5432,)),
        ("https://api.example", (443,)),
        ("http://api.example/path?port=1", (80,)),
        ("https://user@api.example:8443/a:1", (8443,)),
        ("http://[2001:db8::1]", (80,)),
        ("redis.example:6379", (6379,)),
        ("ldap://directory.example", ()),
        ("postgresql:///support", ()),
        ("/run/some.sock", ()),
        ("tcp://host:99999", ()),
    ],
)
def test_the_ports_of_an_address(address: str, ports: tuple[int, ...]) -> None:
    assert ports_of(address) == ports


def test_ports_are_those_of_named_endpoints_and_of_the_steps_own_connections() -> None:
    endpoints = {"support": "postgresql://h:1/x", "other": "postgresql://h:2/x", "api": "https://api.example"}
    assert ConfinedParams().ports(endpoints) == ()
    assert ConfinedParams().ports(endpoints, ["support", "by-hand"]) == (1,)
    assert ConfinedParams(connect=["api"]).ports(endpoints, ["other"]) == (2, 443)


@pytest.mark.parametrize(
    ("version", "size", "parts"),
    [
        (1, 8, ("files",)),
        (2, 8, ("files", "seccomp")),
        (3, 8, ("files", "truncate")),
        (4, 16, ("files", "truncate", "tcp")),
        (6, 24, ("files", "truncate", "tcp", "ioctl", "signals")),
        (9, 24, PARTS),
    ],
)
def test_no_rule_names_a_right_that_the_kernel_does_not_know(version: int, size: int, parts: tuple[str, ...]) -> None:
    known = {1: 1 << 13, 2: 1 << 14, 3: 1 << 15, 4: 1 << 15}.get(version, 1 << 16) - 1
    reach = Reach(read=(Path("/a"),), write=(Path("/b"),), listed=(Path("/a"),), ports=(443,))
    order = order_of(parts, reach, read=[Path("/c")], write=[Path("/d")], version=version)
    assert order is not None
    assert order["size"] == size
    rights = dict(order["paths"])  # type: ignore[arg-type, call-overload]
    assert all(right | order["files"] == order["files"] <= known for right in rights.values())
    assert order["files"] == known or (version > 5 and "ioctl" not in parts)
    assert rights["/b"] == rights["/d"] == order["files"]
    assert rights["/a"] == rights["/c"] == 0b1101
    assert bool(order["net"]) == bool(order["ports"]) == ("tcp" in parts)
    assert bool(order["scoped"]) == ("signals" in parts)
    assert bool(order["seccomp"]) == ("seccomp" in parts)


def test_without_any_part_there_are_no_rules() -> None:
    assert order_of((), Reach(), read=(), write=()) is None


def test_what_is_required_and_missing_is_refused_by_name() -> None:
    some = ("files", "truncate", "tcp")
    assert parts_of(Confinement.BEST, lambda: some) == some
    assert parts_of(Confinement.REQUIRED, lambda: PARTS) == PARTS
    assert parts_of(Confinement.OFF, lambda: PARTS) == ()
    with pytest.raises(StepFailed, match="lacks ioctl, signals, seccomp") as caught:
        parts_of(Confinement.REQUIRED, lambda: some)
    assert caught.value.kind == "confinement"
    with pytest.raises(StepFailed, match="lacks files"):
        parts_of(Confinement.REQUIRED, lambda: ())


def test_policies_see_what_a_program_may_reach_with_absolute_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    paths = {"read": ["share", "/srv/b", "/srv/a"], "write": ["/var/lib/x"]}
    view = Exec().view(
        ExecParams.model_validate({"command": ["true"], "paths": paths, "connect": ["b", "a", "b"], "cwd": "/srv/c"})
    )
    assert view["paths"] == {"read": ["/srv/a", "/srv/b", "/srv/c", "/usr/share"], "write": ["/var/lib/x"]}
    assert view["connect"] == ["a", "b"]
    function = PythonParams.model_validate({"callable": "json:dumps", "path": ["lib"], "connect": ["a"]})
    assert Python().view(function)["paths"] == {"read": ["/usr/lib"], "write": []}


def test_a_program_is_granted_with_what_is_behind_its_link_and_around_the_name_it_is_called_by(tmp_path: Path) -> None:
    tool, link = tmp_path / "second" / "tool", tmp_path / "env" / "bin" / "tool"
    for file in (tool, link):
        file.parent.mkdir(parents=True)
    tool.write_text("")
    link.symlink_to(tool)
    assert program_paths(str(tool), "tool") == (tool,)
    assert program_paths(str(link), str(link)) == (link, tool)
    (tmp_path / "env" / "pyvenv.cfg").write_text("home = /opt/python/bin\n")
    assert program_paths(str(tool), str(link)) == (tool, tmp_path / "env", Path("/opt/python"))


def test_a_virtual_environment_brings_its_interpreter(tmp_path: Path) -> None:
    (tmp_path / "pyvenv.cfg").write_text("home = /opt/python/bin\nversion = 3.11\n")
    assert virtual_environment(tmp_path) == (tmp_path, Path("/opt/python"))
    assert virtual_environment(tmp_path / "other") == ()
    for home in ("", "home = relative/bin\n", "home = /bin\n"):
        (tmp_path / "pyvenv.cfg").write_text(home)
        assert virtual_environment(tmp_path) == (tmp_path,), "never the whole of the file system"
