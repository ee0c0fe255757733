"""What a step may have in Vault so that the orchestrator can ask another issuer for its credential.

The step's policy opens what shows who the orchestrator is to that issuer: signatures of one key, or one secret. The
step itself never has the token with that policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from orchestrator.errors import UsageError
from orchestrator.grants.scope import Scope
from orchestrator.issuers.aws import AccessKey, AwsAccount
from orchestrator.issuers.declared import DeclaredIssuer, beyond
from orchestrator.issuers.oauth2 import SigningKey
from orchestrator.planning.requests import scopes_of
from orchestrator.provision.declarations import Declarations
from orchestrator.provision.vault.objects import TRANSIT
from orchestrator.workflow.models.workflow import Workflow

_TYPES = {
    "RS256": ("rsa-2048", "rsa-3072", "rsa-4096"),
    "PS256": ("rsa-2048", "rsa-3072", "rsa-4096"),
    "ES256": ("ecdsa-p256",),
    "EdDSA": ("ed25519",),
}


def rules_of(issuer: DeclaredIssuer) -> Iterator[str]:
    """The parts of a step's policy, as HCL, with which this issuer can be asked."""
    if isinstance(issuer, AwsAccount):
        yield _key_of_a_day(issuer.vault_path) if issuer.access_key is not None else _path(issuer.vault_path, "read")
        return
    for key in issuer.signing_keys():
        yield _signing(key)
        if key.versions is not None:
            yield _path(key.versions, "read")
    if issuer.client.secret is not None:
        yield _path(issuer.client.secret.resource, "read")
    if issuer.assertion is not None and issuer.assertion.identity_role is not None:
        yield _path(f"identity/oidc/token/{issuer.assertion.identity_role}", "read")
    if issuer.refresh_token is not None:
        yield _path(issuer.refresh_token.resource, "read", "update")


def check_issuers(workflows: Iterable[Workflow], declared: Declarations) -> None:
    """Raises UsageError for a grant that asks for more than is declared, and for keys that do not fit."""
    for workflow in workflows:
        for step_id in workflow.parts:
            for scope in scopes_of(workflow, step_id):
                if scope.outside:
                    _check(scope, declared.issuers, f"grant `{scope.name}` of step `{step_id}` in `{workflow.name}`")
    for name, issuer in declared.issuers.items():
        if isinstance(issuer, AwsAccount):
            for access_key in issuer.access_keys():
                _check_access_key(name, access_key, declared)
            continue
        for key in issuer.signing_keys():
            made = declared.transit_keys.get(key.name)
            if made is not None and made.type not in _TYPES.get(key.algorithm, (made.type,)):
                raise UsageError(
                    f"the issuer `{name}` signs {key.algorithm} with the key `{key.name}`, which is {made.type}",
                    hint=f"{key.algorithm} takes {' or '.join(_TYPES[key.algorithm])}",
                )


def _check(scope: Scope, issuers: Mapping[str, DeclaredIssuer], where: str) -> None:
    issuer = issuers.get(scope.issuer or "")
    if issuer is None:
        raise UsageError(
            f"{where} names the issuer `{scope.issuer}`, which is not declared",
            hint="add it to `issuers` in declarations.yaml",
        )
    if issuer.kind != scope.kind:
        raise UsageError(f"{where} is of the kind `{scope.kind}`, and the issuer `{scope.issuer}` is `{issuer.kind}`")
    if (more := beyond(issuer, scope)) is not None:
        raise UsageError(
            f"{where} asks for {more}, which `{scope.issuer}` may not be asked for",
            hint="an admin adds it to the issuer in declarations.yaml, if that is meant",
        )


def _check_access_key(issuer: str, key: AccessKey, declared: Declarations) -> None:
    made = declared.transit_keys.get(key.key)
    if key.mount == TRANSIT and (made is None or made.type != "hmac"):
        raise UsageError(
            f"the issuer `{issuer}` signs with the transit key `{key.key}`, which is not declared as an `hmac` key",
            hint=f"declare it: transit_keys: {{ {key.key}: {{ type: hmac, origin: import }} }}",
        )


def _signing(key: SigningKey) -> str:
    parameters = "".join(f'    "{name}" = ["{value}"]\n' for name, value in sorted(key.parameters.items()))
    return (
        f'path "{key.resource}" {{\n  capabilities = ["update"]\n'
        f'  allowed_parameters = {{\n    "input" = []\n{parameters}  }}\n}}\n'
    )


def _key_of_a_day(path: str) -> str:
    return (
        f'path "{path}" {{\n  capabilities = ["update"]\n  allowed_parameters = {{\n    "input" = []\n  }}\n'
        '  required_parameters = ["input"]\n}\n'
    )


def _path(path: str, *capabilities: str) -> str:
    listed = ", ".join(f'"{each}"' for each in capabilities)
    return f'path "{path}" {{\n  capabilities = [{listed}]\n}}\n'
