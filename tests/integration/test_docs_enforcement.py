"""The examples of docs/enforcement.md run, against a real issuer; its tables say what the code says."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from bench import ROOT
from exchanges import new_key, proof
from pep_issuer import IssuerServer, issuer_server, json_of
from pep_tokens import claims, header, jwk, jwks, sign, signer

from orchestrator.pep.challenges import AccessRefused, Code, answer
from orchestrator.pep.jwt.proofs import Presented
from orchestrator.pep.sources import Upkeep

TEXT = (ROOT / "docs" / "enforcement.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", TEXT, re.DOTALL))
AUDIENCE = "https://crm.example"


@pytest.fixture(scope="module")
def issuer() -> Iterator[IssuerServer]:
    with issuer_server() as running:
        path = "/.well-known/jwks.json"
        metadata = {"issuer": running.url, "jwks_uri": running.url + path}
        running.answers["/.well-known/oauth-authorization-server"] = json_of(metadata)
        running.answers[path] = json_of(jwks(jwk("p256")))
        yield running


def example(name: str, issuer: IssuerServer) -> dict[str, Any]:
    """The example, with the real issuer in the place of the one that it names."""
    module: dict[str, Any] = {"__name__": name}
    exec(EXAMPLES[name].replace("https://tokens.example", issuer.url), module)
    return module


def bearer(issuer: IssuerServer, **changes: Any) -> str:
    now = int(time.time())
    said = claims(iss=issuer.url, aud=AUDIENCE, iat=now, nbf=now - 5, **{"exp": now + 60, **changes})
    return "Bearer " + sign(header(), said, signer("p256"), "ES256")


async def test_the_application_lets_through_what_the_token_permits_and_nothing_else(issuer: IssuerServer) -> None:
    details = [{"type": "crm_record", "actions": ["write_ticket"], "identifier": "1234"}]
    good = bearer(issuer, scope="crm:tickets", authorization_details=details)
    transport = httpx.ASGITransport(app=example("crm", issuer)["app"])
    async with httpx.AsyncClient(transport=transport, base_url="http://crm") as client:
        done = await client.post("/records/1234/tickets", headers={"Authorization": good})
        assert (done.status_code, done.json()) == (201, {"by": "feedback-assistant"})
        for path, sent, status in (
            ("/records/1235/tickets", good, 403),
            ("/records/1234/tickets", bearer(issuer, scope="crm:tickets"), 403),
            ("/records/1234/tickets", bearer(issuer, authorization_details=details), 403),
            ("/records/1234/tickets", bearer(issuer, exp=int(time.time()) + 901), 401),
            ("/records/1234/tickets", "", 401),
            ("/records/1234/tickets?access_token=x", good, 400),
            ("/nowhere", "", 401),
        ):
            refused = await client.post(path, headers={"Authorization": sent})
            assert refused.status_code == status, (path, status)
            assert refused.headers["cache-control"] == "no-store"
        assert (await client.get("/nowhere", headers={"Authorization": good})).status_code == 404


async def test_the_function_does_the_same_without_a_framework(issuer: IssuerServer) -> None:
    ask = example("anywhere", issuer)["answer"]
    assert await ask([bearer(issuer)], "") == (200, {}, b"hello feedback-assistant")
    for sent, status in (([], 401), ([bearer(issuer), "Bearer x"], 400), ([bearer(issuer, scope="x")], 403)):
        assert (await ask(sent, ""))[0] == status


async def test_a_bound_token_is_taken_with_a_proof(issuer: IssuerServer) -> None:
    protection, key, url = example("bound", issuer)["protection"], new_key(), "https://crm.example/records/1"
    token = bearer(issuer, cnf={"jkt": key.thumbprint()}).removeprefix("Bearer ")
    presented = Presented([proof(key, "GET", url, token=token)], "GET", f"{url}?a=b")
    assert (await protection.authenticate([f"DPoP {token}"], "", presented)).subject == "feedback-assistant"
    with pytest.raises(AccessRefused):
        await protection.authenticate([f"Bearer {token}"], "", presented)


def test_the_examples_are_short() -> None:
    assert set(EXAMPLES) == {"crm", "anywhere", "bound"}
    for code in EXAMPLES.values():
        assert len([line for line in code.splitlines() if line.strip()]) <= 25


def test_the_table_of_answers_is_what_is_answered() -> None:
    rows = re.findall(r"^\| [^|]+ \| (\d+)[^|]* \| ([^|]+) \|$", TEXT.partition("## Answers")[2], re.MULTILINE)
    said = {(int(status), code.partition(",")[0].strip("`")) for status, code in rows}
    codes = {Code.UNAUTHORIZED: "none", Code.UNAVAILABLE: "none"}
    assert said == {(answer(code, "x", realm="x").status, codes.get(code, code.value)) for code in Code}


def test_the_seconds_are_those_of_the_code() -> None:
    table = TEXT.partition("| | seconds |")[2]
    for name in ("again_after", "usual_age", "without_issuer", "time_out", "least_age"):
        line = next(row for row in table.splitlines() if f"`{name}`" in row)
        assert re.search(rf"\b{getattr(Upkeep(), name):g}\b", line), name
