"""One JWT: a table of bad ones, each beside a good one that differs in nothing but what is wrong."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import OctKey
from pep_tokens import AUDIENCE, ISSUER, NOW, attempt, claims, encode, header, jwk, jwks, sign, signer, token, wanted

from orchestrator.pep.access import access_tokens
from orchestrator.pep.errors import Reason, TokenRefused
from orchestrator.pep.jwt.algorithms import KEY_KINDS
from orchestrator.pep.jwt.claims import Audience, Expected
from orchestrator.pep.jwt.keys import read_jwks
from orchestrator.pep.jwt.verification import issuer_named, verify

Try = dict[str, Any]


def part(index: int, change: Callable[[str], str]) -> Callable[[str], str]:
    """One part of a token, changed."""

    def bend(text: str) -> str:
        parts = text.split(".")
        parts[index] = change(parts[index])
        return ".".join(parts)

    return bend


def member(text: str) -> bytes:
    """The claims with one more member, written as it is."""
    return json.dumps(claims()).encode()[:-1] + b"," + text.encode() + b"}"


def claim(name: str, value: Any) -> Try:
    return {"body": {**claims(), name: value}}


def without(name: str) -> Try:
    return {"body": claims(**{name: None})}


def head(**changes: Any) -> Try:
    return {"head": header(**changes)}


def keys(*members: Callable[[], dict[str, Any]], **more: Any) -> Try:
    return {"keys": lambda: jwks(*(each() for each in members)), **more}


def p256(**changes: Any) -> Callable[[], dict[str, Any]]:
    return lambda: jwk("p256", **changes)


def nested(levels: int) -> bytes:
    return member('"x":' + "[" * levels + "]" * levels)


def last_bit(text: str) -> str:
    """Other spare bits at the end of 64 bytes: a lax decoder reads the same."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) | 1]


PUBLIC_AS_SECRET = OctKey.import_key(base64.urlsafe_b64encode(signer("p256").as_pem(private=False)).decode())
RS256: Try = {"head": header(alg="RS256", kid="rsa"), "key": "rsa", "algorithm": "RS256"}
ED: Try = {"head": header(alg="EdDSA", kid="ed25519"), "key": "ed25519", "algorithm": "Ed25519"}
GOOD: Try = {}

BAD: list[tuple[str, Reason, Try, Try]] = [
    # form
    ("two parts", Reason.NOT_COMPACT, {"bent": lambda text: text.rpartition(".")[0]}, GOOD),
    ("four parts", Reason.NOT_COMPACT, {"bent": lambda text: text + ".AA"}, GOOD),
    ("five parts", Reason.ENCRYPTED, {"bent": lambda text: text + ".AA.AA"}, GOOD),
    ("nothing", Reason.NOT_COMPACT, {"bent": lambda text: ""}, GOOD),
    ("too large", Reason.TOO_LARGE, claim("x", "y" * 13000), claim("x", "y" * 10000)),
    ("padding", Reason.NOT_BASE64URL, {"bent": lambda text: text + "=="}, GOOD),
    ("a blank", Reason.NOT_BASE64URL, {"bent": part(1, lambda text: text[:8] + " " + text[8:])}, GOOD),
    ("a line end", Reason.NOT_BASE64URL, {"bent": lambda text: text + "\n"}, GOOD),
    ("the other alphabet", Reason.NOT_BASE64URL, {"bent": part(2, lambda text: "+/" + text[2:])}, GOOD),
    ("not ASCII", Reason.NOT_BASE64URL, {"bent": part(2, lambda text: "é" + text[1:])}, GOOD),
    ("half a character in it", Reason.NOT_BASE64URL, {"bent": part(2, lambda text: "\udcff" + text[1:])}, GOOD),
    ("one character over", Reason.NOT_BASE64URL, {"bent": part(2, lambda text: text[:-1])}, GOOD),
    ("spare bits", Reason.NOT_BASE64URL, {"bent": part(2, last_bit)}, GOOD),
    (
        "header twice",
        Reason.DUPLICATE_MEMBER,
        {"head": b'{"alg":"ES256","typ":"at+jwt","kid":"p256","kid":"p256"}'},
        GOOD,
    ),
    ("claim twice", Reason.DUPLICATE_MEMBER, {"body": member('"scope":"admin"')}, {"body": member('"scopes":"admin"')}),
    (
        "twice, escaped",
        Reason.DUPLICATE_MEMBER,
        {"body": member(r'"sc\u006fpe":1')},
        {"body": member(r'"sc\u006fp":1')},
    ),
    (
        "twice, within",
        Reason.DUPLICATE_MEMBER,
        {"body": member('"x":{"a":1,"a":1}')},
        {"body": member('"x":{"a":1,"b":1}')},
    ),
    ("NaN", Reason.NOT_JSON, {"body": member('"x":NaN')}, {"body": member('"x":0')}),
    ("Infinity", Reason.NOT_JSON, {"body": member('"x":-Infinity')}, {"body": member('"x":-1')}),
    ("overflow", Reason.NOT_JSON, {"body": member('"x":1e999')}, {"body": member('"x":1e99')}),
    ("many digits", Reason.NOT_JSON, {"body": member('"x":' + "1" * 5000)}, {"body": member('"x":' + "1" * 50)}),
    ("half a character", Reason.NOT_JSON, {"body": member(r'"x":"\ud800"')}, {"body": member(r'"x":"\ud83d\ude00"')}),
    ("not UTF-8", Reason.NOT_JSON, {"body": member('"x":"~"').replace(b"~", b"\xff")}, {"body": member('"x":"~"')}),
    ("deep", Reason.TOO_DEEP, {"body": nested(16)}, {"body": nested(15)}),
    ("a bomb", Reason.TOO_DEEP, {"body": b"[" * 12000}, GOOD),
    ("deep header", Reason.TOO_DEEP, {"head": b'{"x":' * 17 + b"1" + b"}" * 17}, GOOD),
    ("a list", Reason.NOT_AN_OBJECT, {"body": b"[1]"}, GOOD),
    ("a text as header", Reason.NOT_AN_OBJECT, {"head": b'"ES256"'}, GOOD),
    ("no payload", Reason.NOT_JSON, {"body": b""}, GOOD),
    ("a byte order mark", Reason.NOT_JSON, {"body": b"\xef\xbb\xbf" + json.dumps(claims()).encode()}, GOOD),
    # header
    ("alg none", Reason.ALGORITHM, head(alg="none"), GOOD),
    ("alg nOnE", Reason.ALGORITHM, head(alg="nOnE"), GOOD),
    ("alg in small letters", Reason.ALGORITHM, head(alg="es256"), GOOD),
    ("no alg", Reason.ALGORITHM, head(alg=None), GOOD),
    ("alg a list", Reason.ALGORITHM, head(alg=["ES256"]), GOOD),
    ("alg not expected", Reason.ALGORITHM, {"expected": {"algorithms": frozenset({"ES384"})}}, GOOD),
    ("HS256", Reason.ALGORITHM, {"head": header(alg="HS256"), "key": PUBLIC_AS_SECRET, "algorithm": "HS256"}, GOOD),
    ("crit", Reason.CRITICAL, head(crit=["exp"]), GOOD),
    ("crit of nothing", Reason.CRITICAL, head(crit=[]), GOOD),
    ("b64 false", Reason.CRITICAL, head(b64=False), GOOD),
    ("jwk", Reason.KEY_IN_HEADER, head(jwk=jwk("p256")), GOOD),
    ("jku", Reason.KEY_IN_HEADER, head(jku=f"{ISSUER}/jwks.json"), GOOD),
    ("x5u", Reason.KEY_IN_HEADER, head(x5u=f"{ISSUER}/x.pem"), GOOD),
    ("x5c", Reason.KEY_IN_HEADER, head(x5c=["MIIB"]), head(x5t="AAAA")),
    ("kid a number", Reason.KEY_ID, head(kid=1), GOOD),
    ("kid a list", Reason.KEY_ID, head(kid=["p256"]), GOOD),
    ("kid empty", Reason.KEY_ID, head(kid=""), GOOD),
    ("kid long", Reason.KEY_ID, head(kid="p" * 257), keys(p256(kid="p" * 256), head=header(kid="p" * 256))),
    ("kid null", Reason.KEY_ID, {"head": {**header(), "kid": None}}, GOOD),
    ("typ JWT", Reason.TYPE, head(typ="JWT"), head(typ="application/AT+JWT")),
    ("no typ", Reason.TYPE, head(typ=None), {"head": header(typ=None), "expected": {"types": None}}),
    ("typ a number", Reason.TYPE, head(typ=1), GOOD),
    # keys
    ("kid unknown", Reason.UNKNOWN_KEY, head(kid="other"), GOOD),
    ("kid a path", Reason.UNKNOWN_KEY, head(kid="../../../../dev/null"), GOOD),
    ("kid twice", Reason.AMBIGUOUS_KEY, keys(p256(), p256()), keys(p256())),
    ("kid twice, two kinds", Reason.AMBIGUOUS_KEY, keys(p256(), lambda: jwk("rsa", kid="p256")), keys(p256())),
    (
        "no kid, two keys",
        Reason.AMBIGUOUS_KEY,
        keys(p256(), lambda: jwk("p256-other"), head=header(kid=None)),
        keys(p256(), lambda: jwk("p256-other", use="enc"), lambda: jwk("rsa"), head=header(kid=None)),
    ),
    ("no kid, no key", Reason.UNKNOWN_KEY, keys(lambda: jwk("rsa"), head=header(kid=None)), GOOD),
    ("use enc", Reason.UNSUITABLE_KEY, keys(p256(use="enc")), keys(p256(use=None))),
    ("key_ops", Reason.UNSUITABLE_KEY, keys(p256(key_ops=["sign"])), keys(p256(key_ops=["verify"]))),
    ("key_ops a text", Reason.UNSUITABLE_KEY, keys(p256(key_ops="verify")), GOOD),
    ("alg of the key", Reason.UNSUITABLE_KEY, keys(p256(alg="ES384")), keys(p256(alg="ES256"))),
    ("alg of the key odd", Reason.UNSUITABLE_KEY, keys(p256(alg=256)), GOOD),
    ("a private key", Reason.UNSUITABLE_KEY, keys(p256(d="AAAA")), GOOD),
    ("a secret", Reason.UNSUITABLE_KEY, keys(lambda: {"kty": "oct", "k": "AAAA", "kid": "p256"}), GOOD),
    ("not on the curve", Reason.UNSUITABLE_KEY, keys(p256(x=jwk("p256-other")["x"])), GOOD),
    ("half a key", Reason.UNSUITABLE_KEY, keys(p256(y=None)), GOOD),
    ("another kind of key", Reason.UNSUITABLE_KEY, {**RS256, "head": header(alg="RS256")}, RS256),
    ("another curve", Reason.UNSUITABLE_KEY, keys(lambda: jwk("p384", kid="p256")), keys(p256())),
    ("weak RSA", Reason.WEAK_KEY, {**keys(lambda: jwk("rsa-weak", kid="rsa")), **RS256, "key": "rsa-weak"}, RS256),
    # signature
    ("another key", Reason.SIGNATURE, {"key": "p256-other"}, GOOD),
    ("no signature", Reason.SIGNATURE, {"bent": part(2, lambda text: "")}, GOOD),
    ("a short signature", Reason.SIGNATURE, {"bent": part(2, lambda text: text[:64])}, GOOD),
    ("signature of zeros", Reason.SIGNATURE, {"bent": part(2, lambda text: encode(bytes(64)))}, GOOD),
    ("other claims", Reason.SIGNATURE, {"bent": part(1, lambda text: encode(claims(scope="admin")))}, GOOD),
    ("PSS for PKCS", Reason.SIGNATURE, {**RS256, "algorithm": "PS256"}, RS256),
    ("Ed25519 of others", Reason.SIGNATURE, {**ED, "bent": part(2, lambda text: encode(bytes(64)))}, ED),
    # claims
    ("no iss", Reason.MISSING_CLAIM, without("iss"), GOOD),
    ("iss null", Reason.MISSING_CLAIM, claim("iss", None), GOOD),
    ("iss with a slash", Reason.ISSUER, claim("iss", ISSUER + "/"), GOOD),
    ("iss in capitals", Reason.ISSUER, claim("iss", ISSUER.upper()), GOOD),
    ("iss a list", Reason.ISSUER, claim("iss", [ISSUER]), GOOD),
    ("no aud", Reason.MISSING_CLAIM, without("aud"), GOOD),
    ("aud of others", Reason.AUDIENCE, claim("aud", ["a", "b"]), claim("aud", ["a", AUDIENCE])),
    ("aud is a part", Reason.AUDIENCE, claim("aud", AUDIENCE[:-1]), GOOD),
    ("aud is more", Reason.AUDIENCE, claim("aud", AUDIENCE + "/x"), GOOD),
    ("aud empty", Reason.CLAIM_TYPE, claim("aud", []), claim("aud", [AUDIENCE])),
    ("aud an object", Reason.CLAIM_TYPE, claim("aud", {AUDIENCE: 1}), GOOD),
    ("aud with a number", Reason.CLAIM_TYPE, claim("aud", [AUDIENCE, 1]), claim("aud", [AUDIENCE, "1"])),
    (
        "aud not ours alone",
        Reason.AUDIENCE,
        {**claim("aud", [AUDIENCE, "a"]), "expected": {"audience": Audience.ONLY}},
        {**claim("aud", [AUDIENCE, AUDIENCE]), "expected": {"audience": Audience.ONLY}},
    ),
    ("no exp", Reason.MISSING_CLAIM, without("exp"), GOOD),
    ("exp a text", Reason.CLAIM_TYPE, claim("exp", str(NOW + 60)), claim("exp", NOW + 60.5)),
    ("exp true", Reason.CLAIM_TYPE, claim("exp", True), GOOD),
    ("exp huge", Reason.CLAIM_TYPE, claim("exp", 10**400), claim("exp", 2**40)),
    ("nbf a text", Reason.CLAIM_TYPE, claim("nbf", "0"), claim("nbf", 0)),
    ("nbf null", Reason.CLAIM_TYPE, claim("nbf", None), without("nbf")),
    ("iat false", Reason.CLAIM_TYPE, claim("iat", False), claim("iat", NOW)),
    ("expired", Reason.EXPIRED, {"now": NOW + 65}, {"now": NOW + 64.9}),
    ("not yet valid", Reason.NOT_YET_VALID, claim("nbf", NOW + 6), claim("nbf", NOW + 5)),
    ("iat in the future", Reason.ISSUED_IN_FUTURE, claim("iat", NOW + 6), claim("iat", NOW + 5)),
    ("ends before it begins", Reason.LIFETIME, {"body": claims(iat=NOW, exp=NOW - 1)}, {"body": claims(exp=NOW + 1)}),
    ("too long a life", Reason.LIFETIME, {"expected": {"longest_life": 59}}, {"expected": {"longest_life": 60}}),
    (
        "too old",
        Reason.TOO_OLD,
        {"expected": {"most_age": 10}, "now": NOW + 16},
        {"expected": {"most_age": 10}, "now": NOW + 15},
    ),
    (
        "age without iat",
        Reason.MISSING_CLAIM,
        {**without("iat"), "expected": {"most_age": 10, "required": frozenset()}},
        {**without("iat"), "expected": {"required": frozenset()}},
    ),
    ("no sub", Reason.MISSING_CLAIM, without("sub"), GOOD),
    ("sub empty", Reason.CLAIM_TYPE, claim("sub", ""), claim("sub", "x")),
    ("sub a number", Reason.CLAIM_TYPE, claim("sub", 7), claim("sub", "7")),
    ("sub with a line end", Reason.CLAIM_TYPE, claim("sub", "a\nb"), claim("sub", "a b")),
    ("no jti", Reason.MISSING_CLAIM, without("jti"), GOOD),
    ("jti an object", Reason.CLAIM_TYPE, claim("jti", {}), GOOD),
    ("no client_id", Reason.MISSING_CLAIM, without("client_id"), GOOD),
    ("no iat", Reason.MISSING_CLAIM, without("iat"), GOOD),
]


@pytest.mark.parametrize(("reason", "bad"), [row[1:3] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_token_is_refused_for_its_reason(reason: Reason, bad: Try) -> None:
    with pytest.raises(TokenRefused) as refused:
        attempt(**bad)
    assert refused.value.reason is reason
    for words in ("customer_feedback", "p256", "lease-1", ISSUER):
        assert words not in str(refused.value)


@pytest.mark.parametrize("good", [row[3] for row in BAD], ids=[row[0] for row in BAD])
def test_its_good_neighbour_is_accepted(good: Try) -> None:
    assert attempt(**good).issuer == ISSUER


def test_every_reason_of_a_token_itself_has_a_bad_token() -> None:
    elsewhere = {Reason.REVOKED, Reason.INTROSPECTION, Reason.CONFIRMATION, Reason.PROOF, Reason.NONCE, Reason.REPLAYED}
    assert {reason for _, reason, _, _ in BAD} == set(Reason) - elsewhere


TOKENS = {
    name: sign(header(kid=name, alg=algorithm), claims(), signer(name), algorithm)
    for name, algorithm in (("p256", "ES256"), ("rsa", "RS256"))
}
KEYS = read_jwks(jwks(jwk("p256"), jwk("rsa")))


@given(st.sampled_from(sorted(TOKENS)), st.data())
def test_a_flipped_bit_anywhere_is_refused(name: str, data: st.DataObject) -> None:
    raw = bytearray(TOKENS[name].encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(TokenRefused):
        verify(raw.decode("latin-1"), KEYS, wanted(), NOW)


@given(
    st.text(st.characters(codec="utf-8"), max_size=60) | st.binary(max_size=40).map(lambda raw: f"{encode(raw)}.e30.AA")
)
def test_what_is_no_token_is_refused_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(TokenRefused):
        verify(text, KEYS, wanted(), NOW)


def test_claims_are_those_that_were_signed() -> None:
    believed = attempt(body=claims(aud=["a", AUDIENCE]))
    assert (believed.subject, believed.token_id, believed.audience) == (
        "feedback-assistant",
        "lease-1",
        ("a", AUDIENCE),
    )
    assert (believed.expires, believed.issued_at) == (NOW + 60, NOW)
    assert believed.all == claims(aud=["a", AUDIENCE])


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithms": frozenset({"HS256"})},
        {"algorithms": frozenset({"ES256", "none"})},
        {"algorithms": frozenset()},
        {"algorithms": "ES256"},
        {"audiences": frozenset()},
        {"audiences": frozenset({""})},
        {"audiences": AUDIENCE},
        {"issuer": ""},
        {"types": frozenset({"AT+JWT"})},
        {"types": frozenset({"application/at+jwt"})},
        {"leeway": -1},
        {"longest_life": math.nan},
    ],
)
def test_an_expectation_that_would_let_anybody_in_cannot_be_made(changes: dict[str, Any]) -> None:
    Expected(ISSUER, frozenset({AUDIENCE}))
    with pytest.raises(ValueError):
        Expected(**{"issuer": ISSUER, "audiences": frozenset({AUDIENCE}), **changes})
    with pytest.raises(ValueError):
        access_tokens(ISSUER)


def test_only_asymmetric_algorithms_are_known() -> None:
    assert {name[:2] for name in KEY_KINDS} == {"ES", "Ed", "RS", "PS"}


def test_an_identity_providers_token_needs_no_type_and_keeps_to_its_own_rules() -> None:
    github = Expected(
        "https://token.actions.githubusercontent.com",
        frozenset({"orchestrator"}),
        algorithms=frozenset({"RS256"}),
        required=frozenset({"sub", "repository"}),
        longest_life=600,
    )
    said = {"iss": github.issuer, "aud": "orchestrator", "sub": "repo:a/b:ref:main", "iat": NOW, "exp": NOW + 300}
    signed = [
        sign({"alg": "RS256", "kid": "rsa", "typ": "JWT"}, body, signer("rsa"), "RS256")
        for body in ({**said, "repository": "a/b"}, said)
    ]
    assert issuer_named(signed[0]) == github.issuer
    assert verify(signed[0], KEYS, github, NOW).all["repository"] == "a/b"
    with pytest.raises(TokenRefused, match="lacks"):
        verify(signed[1], KEYS, github, NOW)


@pytest.mark.parametrize("text", ["", "a.b", "a.W10.c", "a.!.c"])
def test_no_issuer_is_named_by_what_is_no_token(text: str) -> None:
    assert issuer_named(f"a.{encode({'iss': 7})}.c") is None
    with pytest.raises(TokenRefused):
        issuer_named(text)


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[1]}', b'{"keys":[],"keys":[]}'])
def test_what_is_no_jwks_is_not_taken_for_one(document: bytes) -> None:
    assert read_jwks(b'{"keys":[]}').keys == ()
    with pytest.raises(ValueError):
        read_jwks(document)


def test_a_jwks_has_a_bounded_number_of_keys() -> None:
    many = [{"kty": "EC", "kid": str(number)} for number in range(101)]
    assert len(read_jwks(jwks(*many[:100])).keys) == 100
    with pytest.raises(ValueError, match="100"):
        read_jwks(jwks(*many))


def test_both_names_of_the_edwards_curve_mean_one_signature() -> None:
    for said, of_key in (("EdDSA", "Ed25519"), ("Ed25519", "EdDSA"), ("Ed25519", None)):
        public = jwks(jwk("ed25519", alg=of_key))
        trial = {**ED, "head": header(alg=said, kid="ed25519"), "keys": partial(dict, public)}
        assert attempt(**trial).issuer == ISSUER


def test_what_is_shown_of_a_token_does_not_hold_its_text() -> None:
    text = token()
    assert "customer_feedback" not in repr(attempt())
    with pytest.raises(TokenRefused) as refused:
        verify(text[:-4], KEYS, wanted(), NOW)
    assert not any(part in repr(refused.value) for part in text.split("."))
