"""Declared keys that somebody else made: what each is for, and bringing it to where it is declared."""

from __future__ import annotations

from orchestrator.errors import UsageError
from orchestrator.issuers.aws import AwsAccount
from orchestrator.provision.declarations import Declarations
from orchestrator.provision.vault.admin import VaultAdmin
from orchestrator.provision.vault.key_import import KeyUse, import_key, material
from orchestrator.provision.vault.objects import TRANSIT


def declared_use(declared: Declarations, name: str) -> KeyUse:
    """What a key is for. Raises UsageError for one that is not declared to be imported."""
    key = declared.transit_keys.get(name)
    if key is None or key.origin != "import":
        raise UsageError(
            f"no key `{name}` is declared that would be imported",
            hint=f"declare it: transit_keys: {{ {name}: {{ type: hmac, origin: import }} }}",
        )
    if key.type != "hmac":
        return "signature"
    of_aws = [
        each.key
        for issuer in declared.issuers.values()
        if isinstance(issuer, AwsAccount)
        for each in issuer.access_keys()
        if each.mount == TRANSIT
    ]
    return "aws" if name in of_aws else "hmac"


def bring(admin: VaultAdmin, declared: Declarations, name: str, text: str, use: KeyUse, *, rotate: bool) -> int:
    """Import what the text is, and return its version. Raises UsageError and ProvisionError."""
    key, wanted = material(text, use), declared.transit_keys[name].type
    if key.type != wanted:
        raise UsageError(f"the key `{name}` is declared as {wanted}, and that is {key.type}")
    return import_key(admin, TRANSIT, name, key, rotate=rotate)
