"""Whose word is taken for who calls: what may be declared, and whom a token or a certificate is of."""

from __future__ import annotations

import json
import time
from functools import reduce
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from bench import ROOT
from joserfc import jwt
from joserfc.jwk import ECKey

from orchestrator.actions.catalog import catalog
from orchestrator.agents.authentication import Authentication, Caller, CallerRefused
from orchestrator.agents.declared import Agents, load_agents
from orchestrator.cli.main import main
from orchestrator.errors import UsageError
from orchestrator.pep.errors import Reason, TokenRefused
from orchestrator.workflow.loader import load

TEXT = """\
version: 1
issuers:
  company:
    issuer: https://login.example
    audience: [orchestrator]
    jwks_file: company.json
    algorithms: [ES256]
    clock_skew: 2s
    longest_life: 1h
  cluster:
    issuer: https://kubernetes.default.svc
    audience: [orchestrator, other]
    jwks_file: cluster.json
    algorithms: [ES256]
    types: [jwt]
agents:
  complaint-agent:
    may_open: [customer_complaint]
    identities:
      - { issuer: company, claims: { sub: complaint-agent } }
      - { issuer: cluster, claims: { sub: "system:serviceaccount:agents:complaint" } }
      - { spiffe: "spiffe://example.org/agents/complaint" }
  triage:
    may_open: [triage, customer_complaint]
    identities:
      - { issuer: company, claims: { sub: triage, azp: triage-app } }
"""
PLAIN = "http://login.example\n    audience: [orchestrator]\n    discovery: oidc"
KEYS = {name: ECKey.generate_key("P-256", {"kid": name}) for name in ("company", "cluster", "stranger")}
NOW = int(time.time())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    for name, key in KEYS.items():
        (folder / f"{name}.json").write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    (folder / "agents.yaml").write_text(TEXT)
    return folder / "agents.yaml"


@pytest.fixture(scope="module")
def known(file: Path) -> Authentication:
    return Authentication(load_agents(file), file.parent)


def token(by: str = "company", *, header: dict[str, Any] | None = None, **changes: Any) -> str:
    issuer = {"company": "https://login.example", "cluster": "https://kubernetes.default.svc"}.get(by, "https://x")
    claims = {"iss": issuer, "aud": "orchestrator", "sub": "complaint-agent", "iat": NOW, "exp": NOW + 3600, **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode({"alg": "ES256", "kid": by, "typ": "JWT", **(header or {})}, claims, KEYS[by])


ACTOR = {"sub": "complaint-agent"}
DEEP = reduce(lambda inner, number: {"sub": f"a{number}", "act": inner}, range(5), ACTOR)


def numbered(rows: list[Any]) -> dict[str, Any]:
    """Tokens differ in each process, and names of tests must not."""
    return {"argvalues": rows, "ids": [f"row {number}" for number, _ in enumerate(rows, 1)]}


@pytest.mark.parametrize(
    ("sent", "caller"),
    **numbered(
        [
            (token(), Caller("complaint-agent", "company", "complaint-agent", None, NOW + 3600)),
            (
                token("cluster", sub="system:serviceaccount:agents:complaint"),
                Caller("complaint-agent", "cluster", "system:serviceaccount:agents:complaint", None, NOW + 3600),
            ),
            (token(sub="triage", azp="triage-app", more=[1]), Caller("triage", "company", "triage", None, NOW + 3600)),
            (token(sub="alice", act=ACTOR), Caller("complaint-agent", "company", "alice", ACTOR, NOW + 3600)),
            (
                token(sub="alice", act={**ACTOR, "iss": "https://login.example", "act": {"sub": "before"}}),
                Caller(
                    "complaint-agent",
                    "company",
                    "alice",
                    {**ACTOR, "iss": "https://login.example", "act": {"sub": "before"}},
                    NOW + 3600,
                ),
            ),
        ]
    ),
)
async def test_a_token_tells_who_calls_and_for_whom(known: Authentication, sent: str, caller: Caller) -> None:
    found = await known.by_token(sent)
    assert found == caller
    assert found.on_behalf_of == ("alice" if caller.actor else "")


@pytest.mark.parametrize(
    ("sent", "said"),
    **numbered(
        [
            (token(sub="somebody"), "of nobody"),
            (token(sub="complaint-agent "), "of nobody"),
            (token(sub="Complaint-Agent"), "of nobody"),
            (token(sub="triage"), "of nobody"),
            (token(sub="triage", azp=["triage-app"]), "of nobody"),
            (token(sub="triage", azp="complaint-agent"), "of nobody"),
            (token(sub="system:serviceaccount:agents:complaint"), "of nobody"),
            (token("cluster", sub="complaint-agent"), "of nobody"),
            (token(sub="complaint-agent", act={"sub": "alice"}), "of nobody"),
            (token(sub="complaint-agent", act={"sub": "alice", "act": ACTOR}), "of nobody"),
            (token(sub="triage", azp="triage-app", act={"sub": "triage"}), "of nobody"),
            (token(sub="alice", act={**ACTOR, "iss": "https://other.example"}), "of another issuer"),
            (
                token(sub="alice", act={**ACTOR, "act": {"sub": "x", "iss": "https://other.example"}}),
                "of another issuer",
            ),
            (token(sub="alice", act="complaint-agent"), "plainly who acts"),
            (token(sub="alice", act=[ACTOR]), "plainly who acts"),
            (token(sub="alice", act={}), "plainly who acts"),
            (token(sub="alice", act={"sub": ["complaint-agent"]}), "plainly who acts"),
            (token(sub="alice", act={"sub": "complaint-agent", "act": "y"}), "plainly who acts"),
            (
                token(
                    act={
                        "sub": "complaint-agent",
                        "act": {
                            "sub": "2",
                            "act": {"sub": "3", "act": {"sub": "4", "act": {"sub": "5", "act": {"sub": "6"}}}},
                        },
                    }
                ),
                "plainly who acts",
            ),
            (token("stranger"), "nobody who is trusted"),
            (token(iss="https://login.example/"), "nobody who is trusted"),
            (token(iss=None), "nobody who is trusted"),
            (token(iss=["https://login.example"]), "nobody who is trusted"),
        ]
    ),
)
async def test_whoever_is_not_declared_so_is_nobody(known: Authentication, sent: str, said: str) -> None:
    with pytest.raises(CallerRefused, match=said) as caught:
        await known.by_token(sent)
    assert sent not in caught.value.message


@pytest.mark.parametrize(
    ("sent", "reason"),
    **numbered(
        [
            (token("stranger", iss="https://login.example"), Reason.UNKNOWN_KEY),
            (token("cluster", iss="https://login.example"), Reason.UNKNOWN_KEY),
            (token("cluster", header={"kid": "company"}, iss="https://login.example"), Reason.SIGNATURE),
            (token("cluster", sub="system:serviceaccount:agents:complaint", header={"typ": "at+jwt"}), Reason.TYPE),
            (token(aud="other"), Reason.AUDIENCE),
            (token(exp=NOW - 60), Reason.EXPIRED),
            (token(nbf=NOW + 3000, exp=NOW + 3600), Reason.NOT_YET_VALID),
            (token(iat=NOW + 7200, exp=NOW + 7230), Reason.ISSUED_IN_FUTURE),
            (token(iat=NOW - 10, exp=NOW + 7200), Reason.LIFETIME),
            (token(iat=None), Reason.MISSING_CLAIM),
            (token(sub=None), Reason.MISSING_CLAIM),
            (token(sub=7), Reason.CLAIM_TYPE),
            ("not.a.token", Reason.NOT_BASE64URL),
            ("", Reason.NOT_COMPACT),
            ("x" * 20_000, Reason.TOO_LARGE),
        ]
    ),
)
async def test_what_a_trusted_issuer_has_not_signed_for_us_now_is_refused(
    known: Authentication, sent: str, reason: Reason
) -> None:
    with pytest.raises(TokenRefused) as caught:
        await known.by_token(sent)
    assert caught.value.reason is reason


async def test_a_token_that_could_be_of_two_agents_is_of_none(file: Path) -> None:
    both = "  other:\n    may_open: [x]\n    identities: [ { issuer: company, claims: { azp: app } } ]\n"
    second = file.with_name("both.yaml")
    second.write_text(TEXT + both)
    known = Authentication(load_agents(second), second.parent)
    assert (await known.by_token(token(sub="nobody", azp="app"))).agent == "other"
    with pytest.raises(CallerRefused, match="could be of several"):
        await known.by_token(token(azp="app"))


def test_a_certificate_tells_an_agent_by_its_one_name(known: Authentication) -> None:
    named = "spiffe://example.org/agents/complaint"
    caller = known.by_certificate(frozenset({named}))
    assert (caller.agent, caller.subject, caller.on_behalf_of, caller.expires) == ("complaint-agent", named, "", None)
    for others in ({named + "/x"}, {named.upper()}, set(), {named, "spiffe://example.org/agents/triage"}):
        with pytest.raises(CallerRefused):
            known.by_certificate(frozenset(others))


async def test_each_agent_opens_its_own_types_of_task(known: Authentication) -> None:
    caller = await known.by_token(token())
    assert known.may_open(caller, "customer_complaint")
    assert not known.may_open(caller, "triage")
    assert not known.may_open(Caller("somebody", "company", "x"), "customer_complaint")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("version: 1", "version: 2"), "version"),
        (("audience: [orchestrator]", "audience: []"), "audience"),
        (("    audience: [orchestrator]\n", ""), "audience"),
        (("algorithms: [ES256]\n    clock", "algorithms: [HS256]\n    clock"), "algorithms"),
        (("algorithms: [ES256]\n    clock", "algorithms: [none]\n    clock"), "algorithms"),
        (("algorithms: [ES256]\n    clock", "algorithms: []\n    clock"), "algorithms"),
        (("clock_skew: 2s", "clock_skew: 2m"), "clock_skew"),
        (("jwks_file: company.json", "jwks_url: 'http://keys.example/'"), "over https"),
        (("    jwks_file: company.json\n", ""), "one of `discovery`"),
        (("jwks_file: company.json", "jwks_file: company.json\n    discovery: oidc"), "one of `discovery`"),
        (("https://login.example\n    audience: [orchestrator]\n    jwks_file: company.json", PLAIN), "over https"),
        (("issuer: https://kubernetes.default.svc", "issuer: https://login.example"), "the same `issuer`"),
        (("issuer: cluster, claims", "issuer: nobody, claims"), "there is no issuer `nobody`"),
        (("sub: triage, azp: triage-app", "sub: complaint-agent"), "would be told by the same"),
        (("claims: { sub: complaint-agent }", "claims: {}"), "claims"),
        ((", claims: { sub: complaint-agent }", ""), "an `issuer` with `claims`, or a `spiffe` id"),
        (('spiffe: "spiffe://example.org/agents/complaint"', 'spiffe: "spiffe://example.org"'), "spiffe"),
        (('spiffe: "spiffe:', 'issuer: company, spiffe: "spiffe:'), "or a `spiffe` id"),
        (("may_open: [customer_complaint]", "may_open: []"), "may_open"),
        (("  triage:\n", "  'a b':\n"), "a b"),
        (("may_open: [customer_complaint]", "may_open: [customer_complaint]\n    admin: true"), "admin"),
        (("may_open: [customer_complaint]", "may_open: [customer_complaint]\n    may_open: [x]"), "here twice"),
    ],
)
def test_what_cannot_be_declared(file: Path, change: tuple[str, str], said: str) -> None:
    assert change[0] in TEXT
    wrong = file.with_name("wrong.yaml")
    wrong.write_text(TEXT.replace(*change, 1))
    with pytest.raises(UsageError) as caught:
        load_agents(wrong)
    assert said in caught.value.message
    assert str(wrong) in caught.value.message


def test_what_is_declared_has_narrow_defaults() -> None:
    text = {"issuer": "https://a.example", "audience": ["x"], "discovery": "oidc"}
    agents = {"a": {"may_open": ["t"], "identities": [{"issuer": "i", "claims": {"sub": "s"}}]}}
    issuer = Agents.model_validate({"version": 1, "issuers": {"i": text}, "agents": agents}).issuers["i"]
    assert (issuer.clock_skew, issuer.longest_life, issuer.algorithms) == (5, 86400, ["ES256", "EdDSA", "RS256"])


def test_the_command_says_whose_a_token_is(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agents", "check", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "triage  may open triage, customer_complaint\n  by company: sub = triage and azp = triage-app\n" in shown
    assert "  by certificate: spiffe://example.org/agents/complaint\n" in shown
    sent = file.with_name("token.jwt")
    sent.write_text(token(sub="alice", act=ACTOR) + "\n")
    assert main(["agents", "check", str(file), "--token-file", str(sent)]) == 0
    assert "the token is of complaint-agent, by company, on behalf of alice" in capsys.readouterr().out
    assert main(["agents", "check", str(file), "--token-file", str(sent), "--json"]) == 0
    sent.unlink()
    told = json.loads(capsys.readouterr().out)
    assert (told["caller"]["agent"], told["caller"]["subject"]) == ("complaint-agent", "alice")
    assert told["agents"]["triage"]["may_open"] == ["triage", "customer_complaint"]


@pytest.mark.parametrize(("sent", "code"), [("stranger", 3), ("expired", 3), ("", 2)])
def test_a_token_of_nobody_ends_the_command_and_is_not_shown(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sent: str, code: int
) -> None:
    made = {"stranger": token("stranger"), "expired": token(exp=NOW - 60), "": ""}[sent]
    monkeypatch.setattr("sys.stdin", StringIO(made))
    assert main(["agents", "check", str(file), "--token-file", "-"]) == code
    shown = capsys.readouterr()
    assert not made or made not in shown.out + shown.err
    assert "hint:" in shown.err or sent == "expired"


def test_the_sample_is_right_and_names_types_of_task() -> None:
    sample = load_agents(ROOT / "vault" / "agents.yaml")
    assert set(sample.agents) == {"complaint-reader", "complaint-writer", "mail-agent"}
    loaded = [load(path, actions=catalog).workflow for path in sorted((ROOT / "workflows").glob("*.yaml"))]
    types = {each.name for each in loaded if each.is_task}
    assert {name for agent in sample.agents.values() for name in agent.may_open} == types
