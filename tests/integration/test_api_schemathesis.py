"""The HTTP API is as its OpenAPI document says, whatever is sent: Schemathesis makes the requests from the document."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from apis import Apis, apis_on, call, opened
from bench import Bench
from desks import TASK
from fork_server import ForkServer

SERVICES = "services: { crm: { identities: [ { issuer: tests, claims: { sub: crm-service } } ] } }\n"

TYPE = (
    TASK.partition("  pause:")[0]  # which only waits
    .replace("customer: { type: integer }", "customer: { type: integer, default: 1234 }")
    .replace("max_open: 2", "max_open: 50\n    timeout: 5m")
)

CONFIG = """\
workers = 1
rate-limit = "auto"  # waits as `Retry-After` says
continue-on-failure = true
cache.enabled = false
headers.Authorization = "Bearer ${AGENT}"

[generation]
deterministic = true
database = "none"
max-examples = 40

[phases.stateful]
generation.max-examples = 40

[checks]
# The usual ones, and 413: what breaks a schema may be too large, too
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]
use_after_free.enabled = false  # a task that is closed is still told of, and what has ended may be ended again

[[operations]]  # which inputs and arguments are right the type of the task says, and not the document
include-operation-id = ["openTask", "callTool"]
checks.positive_data_acceptance.enabled = false

[[operations]]  # which is the agent's token no schema says, nor what its details are
include-operation-id = "exchangeToken"
checks.positive_data_acceptance.enabled = false
headers.Authorization = "Bearer ${AGENT}"

[[operations]]
include-path-regex = "^/v1/introspect|^/oauth/introspect|^/access/"
headers.Authorization = "Bearer ${SERVICE}"

[[operations]]  # whether each question has all of its parts, together with the whole, no schema says
include-operation-id = "evaluateSeveral"
checks.positive_data_acceptance.enabled = false
generation.max-examples = 100
headers.Authorization = "Bearer ${SERVICE}"
"""

ALWAYS = """
[parameters]
"path.task_id" = "%(task)s"
"path.tool" = "login"

[[operations]]
include-operation-id = "closeTask"
parameters."path.task_id" = "%(closed)s"

[[operations]]
include-operation-id = "giveBack"
parameters."path.lease_id" = "%(returned)s"

[[operations]]
include-operation-id = "renew"
parameters."path.lease_id" = "%(lease)s"
"""

OFTEN = """
[dictionaries]
tasks.values = ["%(task)s"]
leases.values = ["%(lease)s", "%(returned)s"]
tokens.values = ["%(token)s"]
tools.values = ["read", "login", "ticket"]
types.values = ["complaint_desk"]

[parameters]
"path.task_id" = { dictionary = "tasks", probability = 0.8 }
"path.tool" = { dictionary = "tools", probability = 1.0 }
"path.lease_id" = { dictionary = "leases", probability = 0.8 }
"body.type" = { dictionary = "types", probability = 0.9 }
"body.token" = { dictionary = "tokens", probability = 0.8 }
"body.subject.properties.token" = { dictionary = "tokens", probability = 0.8 }
"""


@pytest.fixture
def apis(bench: Bench, children: ForkServer) -> Iterator[Apis]:
    with bench.setup("postgresql") as setup:
        with apis_on(bench, children, setup.ledger_url) as found:
            found.put(TYPE)
            found.agents.write_text(found.agents.read_text() + SERVICES)
            found.start()
            yield found
        bench.assert_nothing_left()


@pytest.fixture
def known(apis: Apis) -> dict[str, str]:
    """What there is to ask about: two tasks, two leases and a token."""
    with apis.client() as agent:
        task, closed = (opened(agent)["id"] for _ in range(2))
        ticket, lease, returned = (call(agent, task, tool).json() for tool in ("ticket", "login", "login"))
    return {
        "task": task,
        "closed": closed,
        "lease": lease["lease"]["id"],
        "returned": returned["lease"]["id"],
        "token": ticket["credential"]["fields"]["token"],
    }


def is_as_documented(apis: Apis, directory: Path, config: str, *phases: str) -> None:
    file = directory / "schemathesis.toml"
    file.write_text(CONFIG + config)
    document = f"{apis.processes[0].url}/v1/openapi.json"
    tokens = {"AGENT": apis.token(), "SERVICE": apis.token("crm-service")}
    words = (sys.executable, "-m", "schemathesis.cli", "--config-file", str(file), "run", document)
    try:
        found = subprocess.run(
            [*words, "--phases", ",".join(phases)],
            env={"PATH": os.environ["PATH"], "COLUMNS": "120", **tokens},
            cwd=directory,
            capture_output=True,
            text=True,
        )
    finally:
        file.unlink()  # it has a token
    assert found.returncode == 0, found.stdout + found.stderr


def test_at_the_edges_of_each_schema(apis: Apis, known: dict[str, str], tmp_path: Path) -> None:
    is_as_documented(apis, tmp_path, ALWAYS % known, "coverage")


def test_in_any_order_with_anything(apis: Apis, known: dict[str, str], tmp_path: Path) -> None:
    is_as_documented(apis, tmp_path, OFTEN % known, "fuzzing", "stateful")
    with apis.ledger() as ledger:
        tasks = ledger.tasks(limit=1000)
        calls = Counter(each.steps[0] for task in tasks for each in ledger.calls(task.task_id))
    assert len(tasks) > 20, "not everything is refused"
    assert min(calls[tool] for tool in ("read", "login", "ticket")) > 2, "nor only what is called above"
