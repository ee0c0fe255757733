"""Access tokens whose claims are fixed inside the server: one workflow of OpenBao's for each grant that asks for it.

A workflow (OpenBao 2.6 and newer, API `/sys/workflows`) is a short list of requests that the server itself carries
out. This one logs in as the signer of one key, builds the claims, and has transit sign them (RFC 7519, RFC 9068). The
step may call it with the id of the token and a shorter life, and with nothing else: neither it nor whoever holds the
runtime's login can have another audience, scope, agent or a longer life signed. The signer's secret id stands in the
workflow's text, which only an administrator may read; nothing else knows it. Its tokens live for seconds and are
stored nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from orchestrator.errors import UsageError
from orchestrator.grants.models import TokenGrant
from orchestrator.grants.policy_names import signer_policy_name, token_role_name
from orchestrator.grants.scope import Scope
from orchestrator.planning.requests import scopes_of
from orchestrator.provision.declarations import TransitKey
from orchestrator.provision.vault.objects import SECRET_ID, TRANSIT, VaultObject
from orchestrator.provision.vault.step_policies import HEADER
from orchestrator.vault.jwks import ALGORITHMS, CLOCK_SKEW, issuer_of
from orchestrator.workflow.models.workflow import Workflow

_SIGNER_POLICY = """\
path "auth/token/lookup-self" {{
  capabilities = ["read"]
}}
path "{mount}/sign/{key}/sha2-256" {{
  capabilities = ["update"]
}}
path "{mount}/keys/{key}" {{
  capabilities = ["read"]
}}
"""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _./:@,+-")
_LEASE_ID = "^lease_[a-z2-7]{20}$"

_TEXT = """\
input {{
  field "string" "jti" {{ required = true }}
  field "int" "seconds" {{ required = true }}
}}

flow "issue" {{
  request "login" {{
    operation = "update"
    path = "auth/approle/login"
    token = ""
    data = {{ role_id = "{signer}", secret_id = "{secret_id}" }}
  }}
  request "now" {{
    operation = "read"
    path = "auth/token/lookup-self"
    token = {signer_token}
  }}
  request "key" {{
    operation = "read"
    path = "{mount}/keys/{key}"
    token = {signer_token}
  }}
  request "sign" {{
    operation = "update"
    path = "{mount}/sign/{key}/sha2-256"
    token = {signer_token}
    data = {{
      marshaling_algorithm = "jws"
      key_version = {key_version}
      input = {{ eval_type = "string", eval_source = "cel", expression = {encoded} }}
    }}
  }}
}}

output {{
  data = {{
    input = {{ eval_type = "string", eval_source = "cel", expression = {signed} }}
    signature = {signature}
  }}
}}
"""


def token_workflows(
    workflows: Iterable[Workflow], keys: Mapping[str, TransitKey], token_issuer: str | None
) -> list[VaultObject]:
    """One workflow for each grant of the profile `workflow` after the signers of their keys, in the order of writing.

    Raises UsageError where the issuer is not set, or a key is not declared.
    """
    found: list[VaultObject] = []
    signers: dict[str, list[VaultObject]] = {}
    for workflow, step_id, grant, scope in token_grants(workflows, "workflow"):
        where = f"grant `{scope.name}` of step `{step_id}` in `{workflow.name}`"
        if token_issuer is None:
            raise UsageError(
                f"{where} is signed inside the server, and what its `iss` is to be is not known",
                hint="set ORCHESTRATOR_TOKEN_ISSUER for provisioning, too",
            )
        if grant.mount != TRANSIT or grant.key not in keys:
            raise UsageError(
                f"{where} is signed by the key `{grant.key}` of `{grant.mount}`, which is not declared",
                hint=f"add it to `transit_keys` in declarations.yaml, whose mount is `{TRANSIT}`",
            )
        claims = {
            "iss": issuer_of(token_issuer, grant.key),
            "sub": workflow.agent,
            "aud": grant.audience,
            "client_id": workflow.name,
            "scope": " ".join(scope.scopes),
        }
        text = workflow_text(claims, grant, ALGORITHMS[keys[grant.key].type], scope.ttl)
        path = scope.resource.replace("sys/workflows/execute/", "sys/workflows/manage/", 1)
        signer = signer_name(grant.key)
        found.append(VaultObject(path, {"workflow": text, "allow_unauthenticated": False}, signer=signer))
        signers[grant.key] = _signer(grant.key)
    return [*chain.from_iterable(signers.values()), *found]


def signer_name(key: str) -> str:
    """The AppRole with which the server signs with this key."""
    return token_role_name(signer_policy_name(key))


def workflow_text(claims: Mapping[str, str], grant: TokenGrant, algorithm: str, ttl: int) -> str:
    """The workflow of one grant. Its only variable parts are the id and a life of at most `ttl` seconds."""
    version = "responses.issue.key.data.latest_version"
    now = "int(responses.issue.now.data.creation_time)"
    life = f"(int(input.seconds) > 0 && int(input.seconds) < {ttl} ? int(input.seconds) : {ttl})"
    header = f'{{"alg": {_cel(algorithm)}, "typ": "at+jwt", "kid": {_cel(grant.key + ":v")} + string(int({version}))}}'
    fixed = ", ".join(f'"{name}": {_cel(value)}' for name, value in claims.items())
    times = f'"iat": {now}, "nbf": {now} - {CLOCK_SKEW}, "exp": {now} + {life}'
    jti = f'"jti": [input.jti].filter(id, id.matches("{_LEASE_ID}"))[0]'  # any other is an error
    url = 'base64.encode(bytes(encode_json(part))).replace("+", "-").replace("/", "_").replace("=", "")'
    signed = f'[{header}, {{{fixed}, {times}, {jti}}}].map(part, {url}).join(".")'
    return _TEXT.format(
        signer=signer_name(grant.key),
        secret_id=SECRET_ID,
        signer_token=_response("login", "auth", "client_token"),
        key_version=_response("key", "data", "latest_version", kind="int"),
        signature=_response("sign", "data", "signature"),
        mount=grant.mount,
        key=grant.key,
        signed=json.dumps(signed),
        encoded=json.dumps(f"base64.encode(bytes({signed}))"),
    )


def token_grants(workflows: Iterable[Workflow], profile: str) -> Iterator[tuple[Workflow, str, TokenGrant, Scope]]:
    """Every grant of this profile: workflow, step, the grant as declared, and its scope."""
    for workflow in workflows:
        for step_id, step in workflow.parts.items():
            for scope in scopes_of(workflow, step_id):
                grant = step.grants[scope.name]
                if isinstance(grant, TokenGrant) and grant.profile == profile:
                    yield workflow, step_id, grant, scope


def _signer(key: str) -> list[VaultObject]:
    name, policy = signer_name(key), signer_policy_name(key)
    return [
        VaultObject(f"sys/policies/acl/{policy}", {"policy": HEADER + _SIGNER_POLICY.format(mount=TRANSIT, key=key)}),
        VaultObject(
            f"auth/approle/role/{name}",
            {
                "token_policies": [policy],
                "token_no_default_policy": True,
                "token_type": "batch",
                "token_ttl": 30,
                "token_max_ttl": 30,
                "bind_secret_id": True,
                "secret_id_ttl": 0,
                "secret_id_num_uses": 0,
            },
        ),
        VaultObject(f"auth/approle/role/{name}/role-id", {"role_id": name}),
    ]


def _response(request: str, *field: str, kind: str = "string") -> str:
    return (
        f'{{ eval_type = "{kind}", eval_source = "response", flow_name = "issue", response_name = "{request}", '
        f"field_selector = {json.dumps(field)} }}"
    )


def _cel(text: str) -> str:
    """A string of CEL that means the same whatever is in it, and has nothing that HCL would take for its own."""
    return '"' + "".join(char if char in _PLAIN else f"\\U{ord(char):08x}" for char in text) + '"'
