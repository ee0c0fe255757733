"""Every kind of database is installed, proven, run on and taken down again, and nothing of it is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from database_kinds import KINDS, DatabaseKind
from sites import Site

from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres
from orchestrator.errors import ExitCode
from orchestrator.proof.forbidden import Verdict


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, nothing_escapes: None) -> Iterator[tuple[Postgres, OpenBao]]:
    folder = tmp_path_factory.mktemp("servers")
    with Postgres(folder / "postgres", durable=False) as postgres, OpenBao(folder / "openbao") as openbao:
        with psycopg.connect(postgres.dsn().reveal()) as session:
            session.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
        yield postgres, openbao


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_is_provisioned_proven_run_on_and_taken_down(
    kind: DatabaseKind, servers: tuple[Postgres, OpenBao], tmp_path: Path
) -> None:
    postgres, openbao = servers
    text = kind.workflow()
    with kind.opened(postgres, tmp_path) as (dsn, addresses):
        site = Site(postgres, openbao, tmp_path, dsn, addresses.endpoint, addresses.primary, kind.login)
        before = site.roles()
        assert site.apply(text)
        assert (site.plan(text), site.notes(text)) == ([], [])

        kind.meanwhile(postgres, kind.database, kind.login)
        site.apply(text)
        proof = site.prove(text)
        assert [each.as_json() for each in proof.grants if not each.holds] == []
        assert [trial for each in proof.grants for trial in each.trials if trial.verdict is not Verdict.REFUSED] == []

        outcome = site.run(text)
        assert outcome.exit_code is ExitCode.DONE, {name: error.message for name, error in outcome.errors.items()}
        assert site.output("read") == {"rows": kind.rows}
        site.assert_nothing_left()
        with site.provisioning(text) as work:
            assert list(work.check().changes) == []

        site.take_down()
        assert site.roles() == before
