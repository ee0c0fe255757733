"""What is said of a lease that Vault has given up, by what the ledger knows of it."""

from dataclasses import replace

import pytest
from test_retries import LEASE

from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.types import LeaseRecord
from orchestrator.recovery.irrevocable import Irrevocable

DATABASE = replace(LEASE, scope={"connection": "support"})


@pytest.mark.parametrize(
    ("lease", "words"),
    [
        (None, "not of this ledger"),
        (DATABASE, "to be taken back through its database"),
        (replace(DATABASE, state=LeaseState.REVOKED), "its login is gone; only Vault's record is left"),
        (LEASE, "nobody but Vault can take it back; look in the system that it is for"),
        (
            replace(LEASE, state=LeaseState.EXPIRED),
            "nobody but Vault can take it back; look in the system that it is for",
        ),
    ],
)
def test_only_of_a_database_login_it_is_said_that_it_is_gone(lease: LeaseRecord | None, words: str) -> None:
    assert Irrevocable("database/creds/x/1", "why", lease).detail == words
