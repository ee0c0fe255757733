"""The server configuration that docker-compose.yml mounts, read by a real OpenBao."""

from __future__ import annotations

import secrets
from pathlib import Path

from orchestrator.devstack.openbao import OpenBao

_REVIEWED = Path(__file__).parents[2] / "vault" / "server.hcl"


class Reviewed(OpenBao):
    """A persistent server with the reviewed configuration: only its places and ports are this machine's."""

    def configuration(self) -> str:
        here = self.directory
        text = _REVIEWED.read_text()
        for there, local in {
            "/openbao/file": f"{here}/raft",
            "/openbao/logs": str(here),
            "/run/secrets/openbao_seal_key": f"{here}/seal.key",
            "0.0.0.0:8200": f"127.0.0.1:{self.port}",
            "0.0.0.0:8201": f"127.0.0.1:{self.cluster_port}",
            "openbao:8200": f"127.0.0.1:{self.port}",
            "openbao:8201": f"127.0.0.1:{self.cluster_port}",
        }.items():
            assert there in text
            text = text.replace(there, local)
        return text


def test_the_reviewed_configuration_serves_audits_and_unseals_itself(tmp_path: Path) -> None:
    canary = secrets.token_hex(16)
    with Reviewed(tmp_path / "openbao", persistent=True) as bao:
        bao.request("POST", "secret/data/thing", {"data": {"word": canary}})
        bao.kill()
        bao.start()
        assert bao.request("GET", "secret/data/thing")["data"]["data"] == {"word": canary}
        audit = bao.audit_log.read_text()
    assert '"path":"secret/data/thing"' in audit
    assert canary not in audit
