"""One call of an AWS Query API: a signed form is posted, and a small XML document comes back.

Nothing of AWS's configuration in the environment or in files is read, no redirect is followed, and every answer is
bounded in size and in time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode, urlsplit

from orchestrator.errors import Refused, Unreachable
from orchestrator.network.aws.answers import LARGEST_ANSWER, Refusal, UnreadableAnswer, refusal_of, texts_of
from orchestrator.network.aws.sigv4 import SigningKey, Unsigned, signed
from orchestrator.network.origins import is_confidential

Signer = Callable[[str], Awaitable[SigningKey]]
"""Gives the key of a UTC day, such as `20260302`."""

VERSIONS = {"sts": "2011-06-15", "iam": "2010-05-08"}
_AGAIN = frozenset(
    [
        "IDPCommunicationError",
        "InternalFailure",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
    ]
)
_CLOCK = frozenset(["SignatureDoesNotMatch", "RequestExpired", "InvalidClientTokenId"])
_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]+){1,3}-\d{1,2}")

_LEAST_SECONDS, _TRY_SECONDS = 0.5, 10.0


class AwsRefused(Refused):
    """AWS said no. `code` is its own word, such as `AccessDenied`."""

    def __init__(self, message: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(message, by="aws", hint=hint)
        self.code = code


class AwsUnavailable(Unreachable):
    """AWS gave no answer that can be used.

    `done`: whether the request may have been carried out all the same; `answered`: an answer came, and another one
    would be no better.
    """

    def __init__(self, message: str, *, done: bool = True, answered: bool = False, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.done = done
        self.answered = answered


@dataclass(frozen=True, slots=True)
class QueryApi:
    """STS or IAM at one address. `now` is the wall clock."""

    service: str
    region: str
    endpoint: str
    now: Callable[[], datetime]

    async def call(
        self, action: str, parameters: Mapping[str, str], *, signer: Signer | None, seconds: float
    ) -> dict[str, str]:
        """The texts of the answer by their places below the result of the action. Asked once, for so long at most.

        Without a signer the request is not signed. Raises AwsRefused, AwsUnavailable, and what the signer raises.
        """
        form = {"Action": action, "Version": VERSIONS[self.service], **parameters}
        body = urlencode(form).encode()
        status, answer = await self._post(body, signer, min(max(seconds, _LEAST_SECONDS), _TRY_SECONDS))
        return self._read(action, status, answer)

    @property
    def _name(self) -> str:
        return f"AWS {self.service.upper()} at {urlsplit(self.endpoint).hostname}"

    async def _post(self, body: bytes, signer: Signer | None, seconds: float) -> tuple[int, bytes]:
        import httpx

        from orchestrator.network.http_client import http_client

        host = urlsplit(self.endpoint).netloc
        headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        if signer is not None:
            at = self.now()
            key = await signer(at.strftime("%Y%m%d"))
            request = Unsigned("POST", host, headers, body)
            headers = signed(request, key, region=self.region, service=self.service, at=at)
        try:
            async with (
                asyncio.timeout(seconds),
                http_client(seconds) as client,
                client.stream("POST", self.endpoint, content=body, headers=headers) as response,
            ):
                received = bytearray()
                async for piece in response.aiter_raw():
                    received += piece
                    if len(received) > LARGEST_ANSWER:
                        raise AwsUnavailable(
                            f"{self._name} answers with more than {LARGEST_ANSWER} bytes", answered=True
                        )
                return response.status_code, bytes(received)
        except TimeoutError:
            raise AwsUnavailable(f"{self._name} did not answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise AwsUnavailable(
                f"{self._name} cannot be reached: {type(error).__name__}",
                done=not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout),
                hint="is the endpoint of the issuer right?",
            ) from None

    def _read(self, action: str, status: int, answer: bytes) -> dict[str, str]:
        if status == 200:
            begin = f"{action}Response/{action}Result/"
            try:
                texts = texts_of(answer)
            except UnreadableAnswer as error:
                raise AwsUnavailable(
                    f"the answer of {self._name} cannot be understood: {error}", answered=True
                ) from None
            if not any(place.startswith(f"{action}Response/") for place in texts):
                raise AwsUnavailable(f"the answer of {self._name} is none to {action}", answered=True)
            return {place.removeprefix(begin): text for place, text in texts.items() if place.startswith(begin)}
        refusal = refusal_of(answer)
        if refusal is None or status >= 500 or status == 429 or refusal.code in _AGAIN:
            said = f": {refusal.code}" if refusal else ""
            raise AwsUnavailable(f"{self._name} answered {status}{said}", done=status >= 500)
        raise AwsRefused(f"{refusal.code}: {refusal.message}", code=refusal.code, hint=_hint(action, refusal))


def _hint(action: str, refusal: Refusal) -> str | None:
    """What an admin can do about it."""
    if refusal.code in _CLOCK:
        return "is the imported key the one of the declared `access_key_id`, and is this machine's clock right?"
    if refusal.code == "PackedPolicyTooLarge":
        return "the session policy and the tags are too much together: grant fewer resources, or by a shorter pattern"
    if refusal.code == "RegionDisabledException":
        return "STS is not activated in the issuer's `region`"
    if refusal.code == "AccessDenied" and action.startswith("AssumeRole"):
        return (
            "the trust policy of the role must allow sts:AssumeRole (and sts:TagSession, sts:SetSourceIdentity) "
            "to the declared identity, with its external id if it asks for one"
        )
    return None


def endpoint_of(service: str, region: str) -> str:
    """The regional address of STS, or the one of IAM in its partition (AWS General Reference, "Service endpoints")."""
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    if service != "iam":
        return f"https://{service}.{region}.{suffix}/"
    if region.startswith("cn-"):
        return f"https://iam.cn-north-1.{suffix}/"
    return "https://iam.us-gov.amazonaws.com/" if region.startswith("us-gov-") else f"https://iam.{suffix}/"


def iam_region(region: str) -> str:
    """The region that requests to IAM are signed for."""
    for begin, name in (("cn-", "cn-north-1"), ("us-gov-", "us-gov-west-1")):
        if region.startswith(begin):
            return name
    return "us-east-1"


def check_region(region: str) -> str:
    """The region itself. Raises ValueError."""
    if not _REGION.fullmatch(region):
        raise ValueError(f"{region!r} is not a region like eu-central-1")
    return region


def check_endpoint(address: str) -> str:
    """An address that signed requests and session keys may travel to: https, or this machine. Raises ValueError."""
    if not is_confidential(address) or urlsplit(address).query or urlsplit(address).path not in ("", "/"):
        raise ValueError("an endpoint is https://host[:port], or http on this machine")
    return address.rstrip("/") + "/"
