"""Proofs of possession (RFC 9449): the examples of the standard itself, and everything of them that can be wrong."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from exchanges import encoded, new_key, proof, signed
from hypothesis import given
from hypothesis import strategies as st
from pep_tokens import NOW, FixedClock, jwk, jwks, token, wanted

from orchestrator.client.possession import ProofKey
from orchestrator.pep.access import AccessToken
from orchestrator.pep.challenges import AccessRefused
from orchestrator.pep.errors import ProofRefused, Reason, TokenRefused
from orchestrator.pep.jwt.proofs import Presented, Proof, access_token_hash, normalised, proof_of
from orchestrator.pep.possession import Nonces, Possession, SeenHere, bound_to
from orchestrator.pep.protection import Protection
from orchestrator.pep.sources import GivenKeys
from orchestrator.secret import Secret

THUMBPRINT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
TOKEN = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
HEAD = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJo"
    "RjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19"
)
AT_THE_TOKEN_ENDPOINT = (
    f"{HEAD}.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2Vu"
    "IiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
)
AT_A_RESOURCE = (
    f"{HEAD}.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90"
    "ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9"
    ".2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
)
"""RFC 9449, 5 and 7.1, with the thumbprint of 6.1 and the token of 5."""

URL = "https://crm.example/records/1"


def test_the_example_of_a_token_request_holds() -> None:
    presented = Presented([AT_THE_TOKEN_ENDPOINT], "POST", "https://server.example.com/token")
    found = proof_of(presented, now=1562262616)
    assert (found.thumbprint, found.issued_at, found.nonce) == (THUMBPRINT, 1562262616, None)
    with pytest.raises(ProofRefused):
        proof_of(presented, now=1562262616 + 66)


def test_the_example_of_a_resource_request_holds_with_its_token_alone() -> None:
    presented = Presented([AT_A_RESOURCE.encode()], "GET", "https://resource.example.org/protectedresource")
    assert proof_of(presented, now=1562262618, token=TOKEN).thumbprint == THUMBPRINT
    assert access_token_hash(TOKEN) == "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"
    with pytest.raises(ProofRefused) as refused:
        proof_of(presented, now=1562262618, token=TOKEN + "x")
    assert refused.value.claim == "ath"


@given(st.data())
def test_a_flipped_bit_anywhere_is_refused(data: st.DataObject) -> None:
    raw = bytearray(AT_A_RESOURCE.encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    presented = Presented([bytes(raw)], "GET", "https://resource.example.org/protectedresource")
    with pytest.raises(ProofRefused):
        proof_of(presented, now=1562262618, token=TOKEN)


@given(
    st.text(st.characters(codec="utf-8"), max_size=60)
    | st.binary(max_size=40).map(lambda raw: encoded(raw) + ".e30.AA")
)
def test_what_is_no_proof_is_refused_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(ProofRefused):
        proof_of(Presented([text], "GET", URL), now=NOW)


@given(
    st.dictionaries(
        st.sampled_from(["jti", "htm", "htu", "iat", "ath", "nonce"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=9)
        | st.lists(st.none()),
    )
)
def test_claims_of_any_type_never_raise_anything_else(claims: dict[str, Any]) -> None:
    dpop = signed({"typ": "dpop+jwt", "alg": "ES256", "jwk": KEY.as_dict(private=False)}, claims, KEY, "ES256")
    with pytest.raises(ProofRefused):
        proof_of(Presented([dpop], "GET", URL), now=NOW)


KEY = new_key()


@pytest.mark.parametrize("algorithm", ["ES256", "Ed25519", "EdDSA", "ES384", "PS256", "RS256"])
def test_each_algorithm_that_is_listed_works(algorithm: str) -> None:
    key = new_key(algorithm)
    dpop = proof(key, "GET", URL, algorithm=algorithm, iat=NOW)
    assert proof_of(Presented([dpop], "GET", URL), now=NOW).thumbprint == key.thumbprint()


def test_a_key_that_is_too_weak_or_for_something_else_is_refused() -> None:
    for change in (
        {"use": "enc"},
        {"key_ops": ["sign"]},
        {"alg": "ES384"},
        {"d": "AAAA"},
        {"k": "AAAA"},
        {"kty": "oct"},
    ):
        dpop = proof(KEY, "GET", URL, header={"jwk": {**KEY.as_dict(private=False), **change}}, iat=NOW)
        with pytest.raises(ProofRefused):
            proof_of(Presented([dpop], "GET", URL), now=NOW)


def test_the_key_of_an_agent_makes_proofs_that_hold() -> None:
    key = ProofKey.generate(FixedClock())
    dpop = key.proof("GET", URL + "?a=b#c", token=TOKEN, nonce="n")
    found = proof_of(Presented([dpop], "GET", URL), now=NOW, token=TOKEN)
    assert (found.thumbprint, found.nonce) == (key.thumbprint, "n")
    assert key.proof("GET", URL) != key.proof("GET", URL)
    assert repr(key) == f"<ProofKey {key.thumbprint}>"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://crm.example", "https://crm.example/"),
        ("HTTPS://CRM.example:443/a", "https://crm.example/a"),
        ("http://crm.example:80/a", "http://crm.example/a"),
        ("https://crm.example/a?b=c#d", "https://crm.example/a"),
        ("https://crm.example/%7Euser", "https://crm.example/~user"),
        ("https://crm.example/a%2fb", "https://crm.example/a%2Fb"),
        ("https://crm.example/a/./b/../c", "https://crm.example/a/c"),
        ("https://crm.example/a/..", "https://crm.example/"),
    ],
)
def test_what_is_the_same_url(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://crm.example/a", "https://crm.example/a/"),
        ("https://crm.example/a", "https://crm.example/A"),
        ("https://crm.example/a", "http://crm.example/a"),
        ("https://crm.example/a", "https://crm.example:8443/a"),
        ("https://crm.example/a%2Fb", "https://crm.example/a/b"),
        ("https://crm.example/a//b", "https://crm.example/a/b"),
    ],
)
def test_what_is_another_url(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


class TestSeen:
    def test_each_proof_counts_once_for_as_long_as_it_could(self) -> None:
        clock = FixedClock()
        seen = SeenHere(clock=clock, most=2)
        one, two, three = (Proof("t", digest, NOW, None) for digest in "abc")

        def first(proof: Proof) -> bool:
            return asyncio.run(seen.first_time(proof))

        assert [first(one), first(one), first(two), first(three)] == [True, False, True, False], "there is no more room"
        clock.seconds = 89.0
        assert not first(one)
        clock.seconds = 91.0
        assert [first(three), first(one), first(one)] == [True, True, False]

    def test_what_could_come_again_is_not_forgotten(self) -> None:
        with pytest.raises(ValueError, match="longer"):
            Possession("https://crm.example", SeenHere(seconds=60))
        with pytest.raises(ValueError, match="absolute"):
            Possession("crm.example")


class TestNonces:
    def test_they_are_good_for_a_while_and_made_by_nobody_else(self) -> None:
        nonces = Nonces(Secret("k" * 32), seconds=60)
        nonce = nonces.fresh(NOW)
        assert all(nonces.accepts(nonce, NOW + seconds) for seconds in (0, 59, 60, 119 - NOW % 60))
        assert not any(nonces.accepts(nonce, NOW + seconds) for seconds in (-60, 121, 3600))
        assert not any(nonces.accepts(each, NOW) for each in (None, "", nonce + "x", "é"))
        assert not Nonces(Secret("j" * 32)).accepts(nonce, NOW)
        with pytest.raises(ValueError, match="32"):
            Nonces(Secret("k" * 31))


class TestProtection:
    POSSESSION = Possession("https://crm.example")
    PROTECTION = Protection(wanted(), GivenKeys.of(jwks(jwk("p256"))), "crm", possession=POSSESSION, clock=FixedClock())

    def refused(self, protection: Protection, *authorization: str, dpop: str | None = None) -> AccessRefused:
        presented = Presented([] if dpop is None else [dpop], "GET", URL)
        with pytest.raises(AccessRefused) as caught:
            asyncio.run(protection.authenticate(authorization, "", presented))
        return caught.value

    def test_what_is_bound_in_a_way_that_is_not_known_is_of_no_use(self) -> None:
        for confirmation in ({"x5t#S256": "a"}, {"jkt": "a", "x5t#S256": "b"}, {"jkt": ""}, {"jkt": 1}, "a", {}, []):
            text = token(cnf=confirmation)
            for scheme in ("Bearer", "DPoP"):
                refusal = self.refused(self.PROTECTION, f"{scheme} {text}", dpop=proof(KEY, "GET", URL, iat=NOW))
                assert (refusal.status, refusal.reason) == (401, Reason.CONFIRMATION)
            plain = replace(self.PROTECTION, possession=None)
            assert self.refused(plain, f"Bearer {text}").reason is Reason.CONFIRMATION

    def test_a_bound_token_is_never_a_plain_one_nor_the_other_way_round(self) -> None:
        bound, plain = token(cnf={"jkt": KEY.thumbprint()}), token()
        for text, scheme in ((bound, "Bearer"), (plain, "DPoP")):
            dpop = proof(KEY, "GET", URL, token=text, iat=NOW)
            for protection in (self.PROTECTION, replace(self.PROTECTION, possession=None)):
                assert self.refused(protection, f"{scheme} {text}", dpop=dpop).status == 401
        other = proof(new_key(), "GET", URL, token=bound, iat=NOW)
        assert self.refused(self.PROTECTION, f"DPoP {bound}", dpop=other).reason is Reason.CONFIRMATION
        good = Presented([proof(KEY, "GET", URL, token=bound, iat=NOW)], "GET", URL)
        found = asyncio.run(self.PROTECTION.authenticate([f"DPoP {bound}"], "", good))
        assert found.subject == "feedback-assistant"
        assert self.refused(self.PROTECTION, f"DPoP {bound}", dpop=str(good.proofs[0])).reason is Reason.REPLAYED

    def test_challenges_name_both_schemes_and_tell_errors_of_the_one_that_was_used(self) -> None:
        algorithms = 'algs="ES256 EdDSA Ed25519 ES384 PS256 RS256"'
        challenges = {
            (): f'Bearer realm="crm", DPoP realm="crm", {algorithms}',
            ("Basic YTpi",): f'Bearer realm="crm", DPoP realm="crm", {algorithms}',
            ("Bearer x",): f'Bearer realm="crm", error="invalid_token", error_description="the signature cannot be '
            f'verified", DPoP realm="crm", {algorithms}',
            (
                "DPoP x",
            ): f'DPoP realm="crm", error="invalid_token", error_description="the signature cannot be verified", '
            f"{algorithms}",
            (
                "DPoP x",
                "Bearer x",
            ): f'Bearer realm="crm", error="invalid_request", error_description="there is more than '
            f'one header Authorization", DPoP realm="crm", {algorithms}',
        }
        for sent, challenge in challenges.items():
            assert dict(self.refused(self.PROTECTION, *sent).answer.headers)["www-authenticate"] == challenge

    def test_without_possession_everything_is_as_if_there_were_no_such_tokens(self) -> None:
        plain = replace(self.PROTECTION, possession=None)
        headers = dict(self.refused(plain, f"DPoP {token()}", dpop=proof(KEY, "GET", URL)).answer.headers)
        assert headers["www-authenticate"] == 'Bearer realm="crm"'

    def test_what_is_bound_to_nothing_says_so(self) -> None:
        access = AccessToken("i", "s", ("a",), "c", frozenset(), "t", 1, 0)
        assert bound_to(access) is None
        assert bound_to(replace(access, claims={"cnf": {"jkt": "a"}})) == "a"
        with pytest.raises(TokenRefused):
            bound_to(replace(access, claims={"cnf": None}))
