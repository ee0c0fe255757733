"""What the runtime's own token may, held against what it needs: pure decisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.doctor.findings import Finding, fault, fine, warning
from orchestrator.evidence.log.signer import KEY

AREA = "rights"

_WRITES = frozenset({"create", "update", "patch", "delete", "sudo", "root"})
_ANY = frozenset({"read", "list", *_WRITES})

TOO_MUCH: Mapping[str, tuple[frozenset[str], str]] = {
    "sys/policies/acl/step/doctor/any": (_WRITES, "write policies"),
    "sys/policies/acl/doctor": (_WRITES, "write policies"),
    "sys/policy/doctor": (_WRITES, "write policies"),
    "sys/mounts/doctor": (_WRITES, "mount engines"),
    "sys/auth/doctor": (_WRITES, "mount ways of logging in"),
    "sys/leases/revoke-force/doctor": (_WRITES, "have Vault forget leases"),
    "database/config/doctor": (_ANY, "read or change connections to databases"),
    "database/roles/doctor": (_WRITES, "change what a login may do"),
    "database/creds/doctor": (_ANY, "issue logins by itself, without a step's token"),
    "secret/data/doctor": (_ANY, "read or write secrets by itself, without a step's token"),
    "auth/token/create": (_WRITES, "make tokens without a role that limits them"),
    "auth/token/create-orphan": (_WRITES, "make tokens that outlive its own"),
    "auth/token/create/doctor": (_WRITES, "make tokens through any token role"),
    "auth/token/roles/doctor": (_WRITES, "change what token roles give"),
    "auth/approle/role/doctor": (_WRITES, "change who may log in"),
    "auth/approle/role/doctor/secret-id": (_WRITES, "make secret ids"),
    "transit/keys/doctor": (_WRITES, "make, change or delete keys"),
}
"""Paths, what nobody needs there who runs workflows, and what it would mean. The names stand for any other."""


SIGNING = f"transit/sign/{KEY}"
"""Where the history is signed."""


def unsigned(capabilities: Mapping[str, Any]) -> Iterator[Finding]:
    """That the history is not signed, where the login has no right to: runs go on without."""
    if not {"update", "root"} & set(capabilities.get(SIGNING) or ()):
        yield warning(
            "history",
            f"the history of runs is not signed: the login may not do that ({SIGNING})",
            "`orchestrator provision apply` installs the key and the right, where `transit_keys` of the declarations "
            f"has {KEY}: {{ type: ed25519 }}",
        )


def too_much(capabilities: Mapping[str, Any], policies: Sequence[str]) -> Iterator[Finding]:
    """What the token may that the runtime does not need, by the answer of `sys/capabilities-self`."""
    if "root" in policies:
        yield fault(
            AREA,
            "the login is root: whoever gets hold of this process has all of Vault",
            "log in as the runtime that `orchestrator provision apply` installs (ORCHESTRATOR_AUTH_ROLE_ID)",
        )
        return
    found: dict[str, set[str]] = {}
    for path, (unneeded, meaning) in TOO_MUCH.items():
        held = set(capabilities.get(path) or ()) & unneeded
        if held:
            found.setdefault(meaning, set()).add(f"{path.replace('doctor', '...')} ({', '.join(sorted(held))})")
    for meaning, where in found.items():
        yield fault(
            AREA,
            f"the runtime may {meaning}: {'; '.join(sorted(where))}",
            f"take it out of its policies ({', '.join(policies)}); the runtime's own is all that it needs",
        )
    if not found:
        yield fine(AREA, f"the login has the policies {', '.join(policies)}, and nothing that runs do not need")
