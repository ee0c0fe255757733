"""What the author declares that a program may reach, and what that comes to for one step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field

from orchestrator.actions.base import LocalPath, Params, StepContext
from orchestrator.actions.process.rules import Reach
from orchestrator.environment import how_to_set
from orchestrator.errors import StepFailed
from orchestrator.jsontypes import JsonObject, JsonValue

_DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "postgres": 5432}


class Paths(Params):
    """Files and folders with all that is below them; relative ones begin in the folder of the workflow's file."""

    read: list[LocalPath] = Field(default_factory=list, description="What it may read and execute.")
    write: list[LocalPath] = Field(
        default_factory=list, description="What it may read, execute, change, make and remove; it must be there."
    )


class ConfinedParams(Params):
    """Of an action that starts a program, which is confined as ORCHESTRATOR_CONFINEMENT says."""

    fixed: ClassVar[frozenset[str]] = frozenset({"paths", "connect"})
    endpoints: ClassVar[frozenset[str]] = frozenset({"connect"})

    paths: Paths = Field(
        default_factory=Paths,
        description="Files that the program may reach beyond the system's own and its private folder.",
    )
    connect: list[str] = Field(
        default_factory=list,
        description="Endpoints to whose TCP ports the program may connect. Those of its own database grants are "
        "among them without being named.",
    )

    def implied(self) -> tuple[Path, ...]:
        """What other parameters say is read, too."""
        return ()

    def reach_view(self) -> JsonObject:
        """What policies see of it: everything that is granted beyond the system's own, with absolute paths."""
        return {
            "paths": {
                "read": _shown((*self.paths.read, *self.implied())),
                "write": _shown(self.paths.write),
            },
            "connect": sorted(set(self.connect)),
        }

    def ports(self, endpoints: Mapping[str, str], connections: Iterable[str] = ()) -> tuple[int, ...]:
        """Of the named endpoints, and of those of the connections that are known. Raises StepFailed."""
        if unknown := [name for name in self.connect if name not in endpoints]:
            raise StepFailed(
                f"`connect` names {', '.join(f'`{name}`' for name in unknown)}, and there is no such endpoint",
                kind="parameters",
                hint=f"there is: {', '.join(sorted(endpoints)) or 'none'}; {how_to_set('endpoints', unknown[0])}",
            )
        names = [*self.connect, *(name for name in connections if name in endpoints)]
        return tuple(sorted({port for name in names for port in ports_of(endpoints[name])}))

    def reach(self, context: StepContext) -> Reach:
        """What the program of this step may reach. Raises StepFailed where something declared is not there."""
        for path in (*self.paths.read, *self.paths.write):
            if not os.path.lexists(path):
                raise StepFailed(
                    f"`paths` names {path}, which is not there",
                    kind="parameters",
                    hint="declare the folder in which it will be made, or make it before the run",
                )
        connections = (each.connection for each in context.credentials.values() if each.connection)
        return Reach(
            read=tuple(path.absolute() for path in (*self.paths.read, *self.implied())),
            write=tuple(path.absolute() for path in self.paths.write),
            ports=self.ports(context.endpoints, connections),
        )


def ports_of(address: str) -> tuple[int, ...]:
    """The TCP ports of an address: a URL, also of several PostgreSQL servers, a DSN of keys and values, `host:port`.

    None where it has none, as that of a Unix socket. Which hosts they are is no part of the rules.
    """
    if "=" in address.partition("?")[0] and "://" not in address:
        return _of_keywords(address)
    parts = urlsplit(address if "://" in address else f"//{address}")
    default = _DEFAULT_PORTS.get(parts.scheme.partition("+")[0])
    hosts = [host for host in parts.netloc.rpartition("@")[2].split(",") if host]
    found = {_port_after(host) or default for host in hosts}
    return tuple(sorted(port for port in found if port))


def _of_keywords(address: str) -> tuple[int, ...]:
    from psycopg.conninfo import conninfo_to_dict

    ports = str(conninfo_to_dict(address).get("port") or _DEFAULT_PORTS["postgresql"])
    return tuple(sorted({int(port) for port in ports.split(",") if port.isdecimal()}))


def _port_after(host: str) -> int | None:
    """Of `host:port` or `[::1]:port`."""
    port = host.rpartition("]")[2].rpartition(":")[2] if ":" in host.rpartition("]")[2] else ""
    return int(port) if port.isdecimal() and int(port) < 1 << 16 else None


def _shown(paths: Iterable[Path]) -> list[JsonValue]:
    return [str(path) for path in sorted({path.absolute() for path in paths})]
