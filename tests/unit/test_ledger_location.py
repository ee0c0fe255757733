"""A ledger's URL is understood, and its password is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.ledger.location import locate


def test_a_bare_path_is_an_sqlite_file(tmp_path: Path) -> None:
    location = locate(str(tmp_path / "ledger.db"))
    assert location.path == tmp_path / "ledger.db"
    assert location.url.drivername == "sqlite"
    assert location == locate(f"sqlite:///{tmp_path}/ledger.db")


def test_a_relative_path_is_fixed_to_the_folder_it_was_given_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("ledger.db").path == tmp_path / "ledger.db"
    assert locate("sqlite:///ledger.db").path == tmp_path / "ledger.db"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_postgresql_url_is_given_to_psycopg_with_its_password(scheme: str) -> None:
    location = locate(f"{scheme}://ann:hunter2@db.example/history")
    assert location.url.drivername == "postgresql+psycopg"
    assert location.url.password == "hunter2"
    assert location.label == "PostgreSQL ledger history at db.example"


def test_the_label_of_a_socket_names_its_folder_and_no_password() -> None:
    label = locate("postgresql://ann:hunter2@/history?host=/run/pg&password=hunter2").label
    assert label == "PostgreSQL ledger history at /run/pg"


@pytest.mark.parametrize(
    ("url", "sslmode"),
    [
        ("postgresql://ann:hunter2@127.0.0.1/history", None),
        ("postgresql://ann:hunter2@[::1]:5432/history", None),
        ("postgresql://ann:hunter2@/history?host=/run/pg", None),
        ("postgresql://ann:hunter2@/history?host=localhost:1&host=[::1]:2", None),
        ("postgresql://ann:hunter2@/history?host=localhost:1&host=db.example:2", "verify-full"),
        ("postgresql://ann:hunter2@db.example/history", "verify-full"),
        ("postgresql://ann:hunter2@127.0.0.1/history?hostaddr=10.1.1.1", "verify-full"),
        ("postgresql://ann:hunter2@db.example/history?sslmode=disable", "disable"),
    ],
)
def test_the_password_goes_to_nobody_who_only_answers_at_the_address(url: str, sslmode: str | None) -> None:
    query = locate(url).url.query
    assert query.get("sslmode") == sslmode
    assert str(query["require_auth"]).startswith("scram-sha-256")
    assert ("sslrootcert" in query) is (sslmode == "verify-full")


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ann:hunter2@db/history",
        "postgresql://ann:hunter2@db:notaport/history",
        "://hunter2",
        "sqlite://",
        "sqlite:///:memory:",
        "",
        "nonsense",
        "postgresql:/ann:hunter2@db/history",
        "postgres:ann:hunter2@db/history.db",
        "host=db password=hunter2 dbname=a/b",
        "dbname = /x password = hunter2",
    ],
)
def test_what_is_no_ledger_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        locate(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "Give a path" in str(caught.value)
