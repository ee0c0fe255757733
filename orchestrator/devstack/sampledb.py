"""The sample database: real customer messages among generated columns that most steps have no business with."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator.secret import Secret

DATABASE = "support"

_SEED = 20240615
_CUSTOMERS = range(1001, 1500)
_NAMES = ["Anong", "Boonsri", "Chai", "Duangjai", "Kanya", "Malee", "Niran", "Prasert", "Somchai", "Ying"]
_CITIES = ["Bangkok", "Chiang Mai", "Khon Kaen", "Phuket", "Surin"]
_TIERS = ["none", "silver", "gold"]
_CHANNELS = ["web", "app", "phone", "social"]


def create_sample_database(admin: Secret, target: Secret, messages: Path) -> None:
    """Create and fill the database `support`.

    `admin` connects to another database of the same server, `target` to the new one; `messages` is the CSV file, beside
    which `schema.sql` has the tables.
    """
    import psycopg

    with psycopg.connect(admin.reveal(), autocommit=True, client_encoding="UTF8") as session:
        session.execute("CREATE DATABASE support")
    with psycopg.connect(target.reveal(), client_encoding="UTF8") as session:
        session.execute(messages.with_name("schema.sql").read_bytes())
        with session.cursor().copy("COPY customer_feedback FROM STDIN") as copy:
            for row in sample_rows(messages):
                copy.write_row(row)
        session.cursor().executemany(
            "INSERT INTO payment_card VALUES (%s, %s, %s)",
            [(number, f"0000-0000-0000-{number:04d}", date(2030, 1, 1)) for number in _CUSTOMERS[:100]],
        )
        session.cursor().executemany(
            "INSERT INTO employee VALUES (%s, %s, %s)",
            [(number, name, 30_000 + 500 * number) for number, name in enumerate(_NAMES, 1)],
        )


def sample_rows(messages: Path) -> Iterator[tuple[Any, ...]]:
    """Each real message with twelve generated columns; the same every time."""
    chance = random.Random(_SEED)  # noqa: S311 -- sample data, not secrets
    start = datetime(2024, 1, 1, tzinfo=UTC)
    with messages.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            customer = chance.choice(_CUSTOMERS)
            name = _NAMES[customer % len(_NAMES)]
            yield (
                *(int(row["id"]), row["kind"], row["comment"]),
                *(customer, f"{name} No. {customer}", f"customer{customer}@example.org", f"+66-00-000-{customer}"),
                *(f"{customer} Sample Road", chance.choice(_CITIES), date(1960, 1, 1) + timedelta(days=customer * 10)),
                *(chance.randrange(0, 1_000_000) / 100, chance.choice(_TIERS), start + timedelta(minutes=37 * number)),
                *(chance.choice(_CHANNELS), None if number % 3 else f"seen by agent {number % 7}"),
            )
