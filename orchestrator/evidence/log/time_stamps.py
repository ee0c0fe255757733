"""Time stamps of another authority over checkpoints (RFC 3161): when they were there, whatever our clock says."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.errors import EvidenceRejected, Unreachable, UsageError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

SECONDS = 20.0
"""How long an authority may take."""

LONGEST = 1 << 20
"""Bytes of its answer: a stamp with its certificates has some thousands."""


async def time_stamp(note: str, address: str) -> str:
    """The authority's answer for a signed checkpoint, in Base64, which is over exactly this checkpoint.

    Whether the authority is to be trusted is for those who verify it. The address may be `http`: the answer is signed
    (RFC 3161, 3.4). Raises UsageError and Unreachable.
    """
    import httpx
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder, decode_timestamp_response

    from orchestrator.network.http_client import http_client

    if not address.startswith(("https://", "http://")):
        raise UsageError("the address of a time-stamping authority begins with https:// or http://")
    request = TimestampRequestBuilder().data(note.encode()).hash_algorithm(HashAlgorithm.SHA256).build()
    headers = {"Content-Type": "application/timestamp-query"}
    answer = b""
    try:
        async with (
            http_client(SECONDS) as client,
            client.stream("POST", address, content=request.as_bytes(), headers=headers) as response,
        ):
            if not response.is_success:
                raise Unreachable(f"the time-stamping authority answered {response.status_code}")
            async for piece in response.aiter_bytes():
                answer += piece
                if len(answer) > LONGEST:
                    raise Unreachable("the time-stamping authority answered more than a time stamp")
        stamp = decode_timestamp_response(answer)
        said = stamp.tst_info.message_imprint.message, stamp.tst_info.nonce
        asked = request.message_imprint.message, request.nonce
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise Unreachable(f"the time-stamping authority did not answer: {type(error).__name__}") from None
    except ValueError:
        raise Unreachable("the time-stamping authority gave no time stamp") from None
    if said != asked:
        raise Unreachable("the time-stamping authority has stamped something else")
    return base64.b64encode(answer).decode()


def stamped_at(stamp: str, note: str, authorities: Sequence[Certificate]) -> datetime:
    """When a checkpoint was there, by an authority whose root is one of these. Raises EvidenceRejected."""
    from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response

    try:
        answer = decode_timestamp_response(base64.b64decode(stamp, validate=True))
        VerifierBuilder(roots=list(authorities), intermediates=[]).build().verify_message(answer, note.encode())
    except (VerificationError, ValueError, binascii.Error) as error:
        raise EvidenceRejected(f"its time stamp is not of it, or of another authority: {error}") from None
    return answer.tst_info.gen_time


def authorities(pem: bytes) -> Sequence[Certificate]:
    """The roots in a file. Raises UsageError."""
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(pem)
    except ValueError:
        raise UsageError("there is no certificate in the file of the time-stamping authority") from None
