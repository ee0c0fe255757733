"""The names of runs, leases, step attempts and logs.

A run id is a ULID (https://github.com/ulid/spec): 48 bits of time, 80 of randomness, in Crockford's
base 32, so that ids sort by time. A lease id is all randomness, so that its first six characters
tell it from nearly every other and a person can type them.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
from collections.abc import Callable

from orchestrator.errors import UsageError

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

TASK_PREFIX = "task_"

LOGIN_PREFIX = "orc_"
"""Begins the name of every ephemeral login: `orc_<step key>_<8 characters>`."""

_SUFFIX = re.compile(r"[A-Za-z0-9]{8}")
"""What Vault adds to a step key to make a login."""

Entropy = Callable[[int], bytes]


RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+~@=-]{0,499}")
"""What people may call a run."""


def chosen_run_id(run_id: str, option: str) -> str:
    """What somebody wants a run to be called, by an `option`. Raises UsageError for what cannot be an id."""
    if not RUN_ID.fullmatch(run_id):
        raise UsageError(
            "a run's id has letters, digits and `_-.:+~@=`, begins with a letter or a digit, and has 500 characters at "
            "most",
            hint=f"leave {option} out: then one is made",
        )
    return run_id


def new_run_id(
    *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000, entropy: Entropy = secrets.token_bytes
) -> str:
    """`run_` and a ULID. Ids made in different milliseconds sort by time."""
    value = (now_ms() & (1 << 48) - 1) << 80 | int.from_bytes(entropy(10))
    return "run_" + "".join(CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


def new_task_id(*, entropy: Entropy = secrets.token_bytes) -> str:
    """`task_` and a ULID, as a run's."""
    return new_run_id(entropy=entropy).replace("run_", TASK_PREFIX)


def new_log_origin(*, entropy: Entropy = secrets.token_bytes) -> str:
    """The name of a ledger's log in the world: no other ledger has it."""
    return f"credential-orchestrator/ledger/{entropy(16).hex()}"


def call_id(task_id: str, key: str) -> str:
    """The id of the run that a call is: the same for the same task and key of the caller, and for no others."""
    digest = hashlib.sha256(f"{len(task_id)}:{task_id}{key}".encode(errors="surrogatepass")).digest()
    return "call_" + _base32(digest, 26)


def new_lease_id(*, entropy: Entropy = secrets.token_bytes) -> str:
    """`lease_` and 20 characters of lower-case base 32 (100 bits)."""
    return "lease_" + _base32(entropy(13), 20)


def new_approval_id(*, entropy: Entropy = secrets.token_bytes) -> str:
    """`appr_` and 20 characters of lower-case base 32 (100 bits)."""
    return "appr_" + _base32(entropy(13), 20)


def new_step_key(step_id: str, *, entropy: Entropy = secrets.token_bytes) -> str:
    """A name for one attempt at a step, such as `translate-k3v9w2m7q4xa`: at most 33 characters of `[a-z0-9-]`.

    It becomes part of a PostgreSQL role name (63 bytes at most) and of a Vault display name.
    """
    return f"{step_id[:20].replace('_', '-')}-{_base32(entropy(8), 12)}"


def step_key_of(login: str) -> str:
    """The step key in the name of an ephemeral login, `orc_<step key>_<8 characters>`."""
    return login.removeprefix(LOGIN_PREFIX).rpartition("_")[0]


def carries(login: str, step_key: str) -> bool:
    """Whether a database login is one of this step key, `orc_<step key>_<8 characters>`: what a sweep goes by."""
    beginning = f"{LOGIN_PREFIX}{step_key}_"
    return login.startswith(beginning) and _SUFFIX.fullmatch(login, len(beginning)) is not None


def _base32(raw: bytes, length: int) -> str:
    return base64.b32encode(raw).decode().lower()[:length]
