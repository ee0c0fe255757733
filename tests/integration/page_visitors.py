"""A process of `serve --ui`, and people with Vault tokens of their own who visit it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from bench import Bench
from fork_server import ForkServer
from test_serve import Served, served_on
from waiting import wait_for

from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import ApprovalState

PEOPLE = {"alice": ["page-approver"], "bob": ["page-reader"], "olga": ["page-operator"], "mallory": []}
LOOK_AT_ONESELF = 'path "auth/token/lookup-self" { capabilities = ["read"] }'
PASSWORD = "correct horse battery"
FORM_TOKEN = re.compile(r'name="form_token" value="([\w-]+)"')


@dataclass
class Site:
    """A process of `serve --ui`, and people with Vault tokens of their own."""

    served: Served
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        address = wait_for(
            lambda: [one["address"] for one in self.served.records() if "address" in one], "the listener"
        )
        return f"http://{address[-1]}"

    def browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.base, trust_env=False, timeout=30)

    def post(self, browser: httpx.Client, path: str, origin: str | None = "", **form: str) -> httpx.Response:
        headers = {} if origin is None else {"Origin": origin or self.base}
        return browser.post(path, data=form, headers=headers)

    @contextmanager
    def logged_in(self, name: str) -> Iterator[httpx.Client]:
        with self.browser() as browser:
            answer = self.post(browser, "/ui/login", token=self.tokens[name], then="/ui/runs?state=failed")
            assert (answer.status_code, answer.headers.get("location")) == (303, "/ui/runs?state=failed"), answer.text
            yield browser

    def form_token(self, browser: httpx.Client) -> str:
        found = FORM_TOKEN.search(browser.get("/ui/").text)
        assert found is not None
        return found[1]


@contextmanager
def site_on(bench: Bench, children: ForkServer) -> Iterator[Site]:
    """Not started yet. At the end no token of theirs may be in what it logged."""
    vault = bench.vault
    vault.sys.enable_auth_method("userpass")
    try:
        with served_on(bench, children) as served:
            found = Site(served)
            for name, policies in PEOPLE.items():
                for policy in policies:
                    vault.sys.create_or_update_policy(policy, LOOK_AT_ONESELF)
                user = {"password": PASSWORD, "token_policies": policies}
                vault.write_data(f"auth/userpass/users/{name}", data=user)
                answer = vault.write_data(f"auth/userpass/login/{name}", data={"password": PASSWORD})
                found.tokens[name] = answer["auth"]["client_token"]
            served.environment |= {
                "ORCHESTRATOR_UI_READERS": '["vault-policy:page-reader"]',
                "ORCHESTRATOR_UI_APPROVERS": '["vault-policy:page-approver"]',
                "ORCHESTRATOR_UI_OPERATORS": '["vault-policy:page-operator"]',
            }
            yield found
            log = served.log.read_text()
            assert not [name for name, token in found.tokens.items() if token in log]
            assert "Traceback" not in log
    finally:
        vault.sys.disable_auth_method("userpass")


POLICY = """package orchestrator
import rego.v1
default decision := {"allow": true}
decision := {"allow": true, "obligations": {"approval": {
    "approvers": ["vault:userpass-alice", "oidc-groups:Support Leads"], "count": 1}}} if input.workflow.name == "asks"
"""


def triggered(site: Site, workflow: str) -> None:
    """As soon as its schedule is known."""
    command, environment = site.served.children.command, site.served.environment
    wait_for(lambda: command("schedules", "trigger", workflow, environment=environment).returncode == 0, "the schedule")


def waiting_run(site: Site, begin: Callable[[Site], None] = lambda site: site.served.start("--ui")) -> str:
    """The request for approval of a run that waits for alice, in a process that is begun so."""
    policies = site.served.bench.directory / "policies"
    policies.mkdir()
    (policies / "p.rego").write_text(POLICY)
    del site.served.environment["ORCHESTRATOR_POLICY"]
    site.served.environment["ORCHESTRATOR_POLICY_PATH"] = str(policies)
    site.served.put("asks", "{ every: 1h }")
    begin(site)
    triggered(site, "asks")
    with open_ledger(site.served.ledger_url, clock=SystemClock()) as ledger:
        (record,) = wait_for(lambda: ledger.approvals.all(state=ApprovalState.OPEN, run=None, limit=2), "the request")
    return record.approval_id
