"""Every kind of database is installed, proven, run on and taken down again, and nothing of it is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from database_kinds import KINDS, DatabaseKind
from sites import opened

from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres
from orchestrator.errors import ExitCode
from orchestrator.proof.forbidden import Verdict


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_is_provisioned_proven_run_on_and_taken_down(
    kind: DatabaseKind, bare_servers: tuple[Postgres, OpenBao], tmp_path: Path
) -> None:
    text = kind.workflow()
    with opened(kind, bare_servers, tmp_path) as site:
        before = site.roles()
        assert site.apply(text)
        assert (site.plan(text), site.notes(text)) == ([], [])

        kind.meanwhile(site.server, kind.database, kind.login)
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
