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

_SCHEMA = """
CREATE ROLE support_owner NOLOGIN;
CREATE TABLE customer_feedback (
    id integer PRIMARY KEY, kind text NOT NULL, comment text NOT NULL,
    customer_id integer NOT NULL, customer_name text NOT NULL, email text NOT NULL, phone text NOT NULL,
    address text NOT NULL, city text NOT NULL, birth_date date NOT NULL, account_balance numeric(12, 2) NOT NULL,
    loyalty_tier text NOT NULL, created_at timestamptz NOT NULL, channel text NOT NULL, internal_note text
);
CREATE TABLE feedback_translation (
    feedback_id integer NOT NULL REFERENCES customer_feedback (id), language text NOT NULL, translation text NOT NULL,
    run_id text NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (feedback_id, language, run_id)
);
CREATE TABLE ticket (
    id text PRIMARY KEY, customer_id integer NOT NULL, subject text NOT NULL, messages integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE mail_category (
    mailbox text NOT NULL, message_id text NOT NULL, category text NOT NULL, task_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (task_id, message_id)
);
CREATE TABLE payment_card (customer_id integer PRIMARY KEY, number text NOT NULL, expires date NOT NULL);
CREATE TABLE employee (id integer PRIMARY KEY, name text NOT NULL, salary numeric(12, 2) NOT NULL);
ALTER TABLE customer_feedback OWNER TO support_owner;
ALTER TABLE feedback_translation OWNER TO support_owner;
ALTER TABLE ticket OWNER TO support_owner;
ALTER TABLE mail_category OWNER TO support_owner;
ALTER TABLE payment_card OWNER TO support_owner;
ALTER TABLE employee OWNER TO support_owner;
GRANT USAGE ON SCHEMA public TO support_owner;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON DATABASE support, postgres, template1 FROM PUBLIC;
CREATE ROLE feedback_app NOLOGIN;
GRANT CONNECT ON DATABASE support TO feedback_app;
GRANT USAGE ON SCHEMA public TO feedback_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO feedback_app;
"""
"""`feedback_app` is what one static user of all steps would be. Nothing uses it: it is there to be compared with."""

_SEED = 20240615
_CUSTOMERS = range(1001, 1500)
_NAMES = ["Anong", "Boonsri", "Chai", "Duangjai", "Kanya", "Malee", "Niran", "Prasert", "Somchai", "Ying"]
_CITIES = ["Bangkok", "Chiang Mai", "Khon Kaen", "Phuket", "Surin"]
_TIERS = ["none", "silver", "gold"]
_CHANNELS = ["web", "app", "phone", "social"]


def create_sample_database(admin: Secret, target: Secret, messages: Path) -> None:
    """Create and fill the database `support`.

    `admin` connects to another database of the same server, `target` to the new one; `messages` is
    the CSV file.
    """
    import psycopg

    with psycopg.connect(admin.reveal(), autocommit=True, client_encoding="UTF8") as session:
        session.execute("CREATE DATABASE support")
    with psycopg.connect(target.reveal(), client_encoding="UTF8") as session:
        session.execute(_SCHEMA)
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
