"""Keys of somebody else's, brought into a real transit engine by the command that an admin gives."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac
import pytest
import yaml
from bench import Bench, surroundings
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from fork_server import orchestrator

from orchestrator.devstack.session import admin_environment

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
ACCOUNT = {
    "kind": "aws",
    "region": "eu-central-1",
    "roles": {"reporter": "arn:aws:iam::123456789012:role/reporter"},
}


@dataclass
class Admin:
    """The command line of an admin, with declarations of the test's own."""

    bench: Bench
    folder: Path
    name: str

    def declare(self, kind: str, *, use: str = "", **more: Any) -> None:
        document = yaml.safe_load((self.bench.declarations / "declarations.yaml").read_text())
        document["transit_keys"][self.name] = {"type": kind, "origin": "import", **more}
        if use == "aws":
            account = {**ACCOUNT, "access_key": {"id": "AKIAQQQQQQQQQQQQQQQQ", "key": self.name}}
            document["issuers"] = {**document["issuers"], "aws-prod": account}
        (self.folder / "declarations.yaml").write_text(yaml.safe_dump(document))

    def run(self, *arguments: str, given: str | bytes = "") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*orchestrator(), "provision", *arguments],
            input=given.encode() if isinstance(given, str) else given,
            capture_output=True,
            env={**surroundings(), **admin_environment(self.bench.provisioned)},
            check=False,
            timeout=120,
        )

    def bring(self, given: str | bytes, *more: str) -> subprocess.CompletedProcess[bytes]:
        return self.run("import-key", self.name, "--declarations", str(self.folder), *more, given=given)

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = self.bench.vault.read(f"transit/keys/{self.name}")["data"]
        return found

    def write(self, path: str, **data: Any) -> Any:
        return self.bench.vault.write_data(path, data=data)["data"]


@pytest.fixture
def admin(bench: Bench, tmp_path: Path) -> Iterator[Admin]:
    folder = tmp_path / "declarations"
    shutil.copytree(bench.declarations, folder)
    admin = Admin(bench, folder, f"key-{secrets.token_hex(4)}")
    yield admin
    if bench.vault.read(f"transit/keys/{admin.name}"):
        bench.vault.write_data(f"transit/keys/{admin.name}/config", data={"deletion_allowed": True})
        bench.vault.delete(f"transit/keys/{admin.name}")


def of_a_day(admin: Admin, day: str = "20260302") -> bytes:
    """As the step of an `aws` grant asks for it."""
    given = admin.write(f"transit/hmac/{admin.name}/sha2-256", input=base64.b64encode(day.encode()).decode())
    return base64.b64decode(given["hmac"].rpartition(":")[2])


def test_a_secret_access_key_signs_in_vault_as_it_would_have_here(admin: Admin) -> None:
    admin.declare("hmac", use="aws")
    done = admin.bring(SECRET + "\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == f"the key {admin.name} is in Vault, version 1\n"
    assert of_a_day(admin) == hmac.digest(f"AWS4{SECRET}".encode(), b"20260302", hashlib.sha256)
    assert (admin.data["exportable"], admin.data["allow_plaintext_backup"]) == (False, False)
    with pytest.raises(hvac.exceptions.InvalidRequest):
        admin.bench.vault.read(f"transit/export/hmac-key/{admin.name}")


def test_another_secret_is_what_it_is(admin: Admin) -> None:
    admin.declare("hmac")
    assert admin.bring(SECRET).returncode == 0
    assert of_a_day(admin) == hmac.digest(SECRET.encode(), b"20260302", hashlib.sha256)


def test_a_new_secret_takes_the_place_of_the_old_one(admin: Admin) -> None:
    admin.declare("hmac", use="aws")
    admin.bring(SECRET)
    refused = admin.bring("B" * 40)
    assert refused.returncode == 2
    assert b"--rotate" in refused.stderr
    done = admin.bring("B" * 40, "--rotate", "--json")
    assert json.loads(done.stdout) == {"key": admin.name, "type": "hmac", "version": 2}
    assert of_a_day(admin) == hmac.digest(b"AWS4" + b"B" * 40, b"20260302", hashlib.sha256)


def test_private_keys_sign_and_their_public_parts_verify(admin: Admin) -> None:
    key = rsa.generate_private_key(65537, 2048)
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    admin.declare("rsa-2048")
    done = admin.bring(json.dumps({"type": "service_account", "private_key": text}))
    assert done.returncode == 0, done.stderr
    signed = admin.write(
        f"transit/sign/{admin.name}",
        input=base64.b64encode(b"claims").decode(),
        hash_algorithm="sha2-256",
        signature_algorithm="pkcs1v15",
    )["signature"]
    signature = base64.b64decode(signed.rpartition(":")[2])
    key.public_key().verify(signature, b"claims", padding.PKCS1v15(), hashes.SHA256())


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ed25519"])
def test_keys_on_curves_are_taken_too(admin: Admin, kind: str) -> None:
    key: Any = ec.generate_private_key(ec.SECP256R1()) if kind == "ecdsa-p256" else ed25519.Ed25519PrivateKey.generate()
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    admin.declare(kind)
    done = admin.bring(text)
    assert done.returncode == 0, done.stderr
    signed = admin.write(f"transit/sign/{admin.name}", input=base64.b64encode(b"claims").decode())["signature"]
    signature = base64.b64decode(signed.rpartition(":")[2])
    if kind == "ecdsa-p256":
        key.public_key().verify(signature, b"claims", ec.ECDSA(hashes.SHA256()))
    else:
        key.public_key().verify(signature, b"claims")


REFUSED: dict[str, tuple[str, str, bytes]] = {
    "nothing": ("hmac", "", b""),
    "no secret access key": ("hmac", "aws", b"not one of AWS"),
    "another kind of key": ("rsa-2048", "", b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
    "too much": ("hmac", "", b"a" * 70_000),
}


@pytest.mark.parametrize(("kind", "use", "given"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_meant_is_refused_and_not_repeated(admin: Admin, kind: str, use: str, given: bytes) -> None:
    admin.declare(kind, use=use)
    done = admin.bring(given)
    assert done.returncode == 2
    assert not given or given[:8] not in done.stdout + done.stderr
    assert admin.bench.vault.read(f"transit/keys/{admin.name}") is None


def test_a_key_that_is_not_declared_to_be_imported_is_not(admin: Admin) -> None:
    done = admin.run("import-key", "orchestrator-token", "--declarations", str(admin.folder), given=SECRET)
    assert done.returncode == 2
    assert b"origin: import" in done.stderr


def test_the_secret_is_in_no_file_of_the_servers(admin: Admin) -> None:
    admin.declare("hmac", use="aws")
    secret = secrets.token_urlsafe(30).replace("-", "A").replace("_", "B")
    admin.bring(secret)
    of_a_day(admin)
    audit = admin.bench.info.directory.rglob("audit.log")
    assert [secret.encode() in path.read_bytes() for path in audit] == [False]


def test_provisioning_tells_what_is_still_to_be_imported(admin: Admin) -> None:
    admin.declare("hmac", use="aws")
    where = ("--declarations", str(admin.folder), "--workflows", "workflows")
    told = admin.run("check", *where)
    assert told.returncode == 4
    assert f"< import vault transit/keys/{admin.name}" in told.stdout.decode()
    assert "to be brought there with `orchestrator provision import-key`" in told.stdout.decode()
    applied = admin.run("apply", *where)
    assert applied.returncode == 0, applied.stderr
    assert admin.bench.vault.read(f"transit/keys/{admin.name}") is None, "nobody makes up a secret"
    admin.bring(SECRET)
    told = admin.run("check", *where)  # which also tells what other tests have installed
    assert told.returncode in (0, 4), told.stderr
    assert admin.name not in told.stdout.decode()
    assert "import-key" not in told.stdout.decode()
