"""`orchestrator issuers`: who issues beside Vault, as an admin declares it, and what they have to be told of us."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import options
from orchestrator.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from orchestrator.credentials.issuers.oauth2.metadata import Endpoints
    from orchestrator.issuers.aws import AwsAccount
    from orchestrator.issuers.oauth2 import OAuth2Server, SigningKey
    from orchestrator.jsontypes import JsonObject

app = typer.Typer(help="Who issues beside Vault, as declared.", no_args_is_help=True, rich_markup_mode=None)

IssuersFile = Annotated[Path, typer.Argument(metavar="FILE", help="Such as vault/declarations.yaml.")]


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    program.add_typer(app, name="issuers")


@app.command("check")
def check(
    file: IssuersFile,
    ask: Annotated[bool, typer.Option("--ask", help="Ask authorization servers for their metadata, too.")] = False,
    as_json: options.Json = False,
) -> None:
    """Check a declaration of issuers, and say of each who asks it, for what at most, and how its credentials end.

    Nothing is issued. With --ask the exit code is 5 where a server does not tell where its endpoints are.
    """
    from orchestrator.cli import interruption
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console
    from orchestrator.issuers.declared import load_issuers
    from orchestrator.issuers.oauth2 import OAuth2Server

    told: dict[str, JsonObject] = {}
    for name, issuer in load_issuers(file).items():
        if isinstance(issuer, OAuth2Server):
            found = interruption.run(lambda server=issuer: _endpoints(server)) if ask else None  # type: ignore[misc]
            told[name] = _of_server(issuer, found)
        else:
            told[name] = {
                "kind": issuer.kind,
                "roles": sorted(issuer.roles),
                "ends": "its use ends with the step; AWS has no way to revoke one session",
            }
    if as_json:
        print_json({"issuers": told})
        return
    for name, each in told.items():
        console().print(name, markup=False, highlight=False)
        for key, value in each.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            console().print(f"  {key}: {shown}", markup=False, highlight=False)


@app.command("keys")
def keys(
    file: IssuersFile,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The issuer's name in the file.")],
) -> None:
    """Print, as a JWKS, the public keys by which an authorization server knows us: to be registered there.

    Needs a login at Vault that may read the keys. After a rotation the old versions are among them.
    """
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.configured.vault_login import vault_config
    from orchestrator.issuers.declared import load_issuers
    from orchestrator.issuers.oauth2 import OAuth2Server
    from orchestrator.provision.service import admin_token
    from orchestrator.provision.vault.admin import VaultAdmin
    from orchestrator.settings import load_settings

    issuer = load_issuers(file).get(name)
    if not isinstance(issuer, OAuth2Server):
        raise UsageError(f"{file} declares no authorization server `{name}`")
    signing = {key.name: key for key in issuer.signing_keys() if key.algorithm != "HS256"}
    if not signing:
        raise UsageError(f"`{name}` is asked without a key of ours", hint="see `client` and `assertion` in the file")
    config = vault_config(load_settings())
    admin = VaultAdmin(config, admin_token(config))
    try:
        found = [jwk for key in signing.values() for jwk in _public(key, admin)]
    finally:
        admin.close()
    print_json({"keys": found})


def _public(key: SigningKey, admin: Any) -> list[Any]:
    from orchestrator.vault.jwks import key_id, public_jwks

    path = f"{key.mount}/keys/{key.name}"
    answer = admin.read(path)
    if answer is None:
        raise UsageError(f"there is no key at `{path}`", hint="`orchestrator provision apply` makes declared keys")
    named = key.key_id
    found = public_jwks({"data": answer}, key.algorithm, named=lambda version: named or key_id(key.name, version))
    return list(found["keys"])


async def _endpoints(server: OAuth2Server) -> Endpoints:
    from orchestrator.credentials.issuers.oauth2.metadata import Metadata
    from orchestrator.credentials.issuers.oauth2.trust import Trust

    async with Trust().client(server, 10.0) as http:
        return await Metadata().endpoints(http, server)


def _of_server(server: OAuth2Server, found: Endpoints | None) -> JsonObject:
    signers = [f"{key.algorithm} by {key.mount}/{key.name}" for key in server.signing_keys()]
    about: dict[str, Any] = {
        "kind": server.kind,
        "issuer": server.issuer,
        "flow": server.flow,
        "client": f"{server.client.id}, {server.client.method}",
        "signed": signers or ["nothing"],
        "scopes": list(server.scopes),
        "subjects": list(server.assertion.subjects) if server.assertion else [],
    }
    about = {key: value for key, value in about.items() if value}
    if found is not None:
        about |= _shown(found)
    return {**about, "ends": _end(server, found)}


def _shown(found: Endpoints) -> Mapping[str, str]:
    named = {"token": found.token, "revocation": found.revocation, "introspection": found.introspection}
    return {f"{name} endpoint": url for name, url in named.items() if url is not None}


def _end(server: OAuth2Server, found: Endpoints | None) -> str:
    """What the end of its tokens means at best, as far as is known without one."""
    if not server.revokes:
        return "ended, valid until it expires: revoking it might revoke the refresh token"
    if found is None and server.discovery is not None:
        return "as its metadata say; ask with --ask"
    revocation = found.revocation if found else server.revocation_endpoint
    introspection = found.introspection if found else server.introspection_endpoint
    if revocation is None:
        return "ended, valid until it expires: there is no revocation endpoint"
    if introspection is None:
        return "revocation is asked for, and cannot be confirmed: ended, valid until it expires"
    return "revoked, where the issuer then calls it inactive; else ended, valid until it expires"


@app.command("deny")
def deny(
    file: IssuersFile,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The AWS account, by its name in the file.")],
    role: Annotated[str, typer.Argument(metavar="ROLE", help="The role, by its name there.")],
    agent: Annotated[str | None, typer.Option(help="Only sessions that were issued for this agent.")] = None,
    lift: Annotated[bool, typer.Option("--lift", help="Take such a denial away again.")] = False,
    as_json: options.Json = False,
) -> None:
    """For an admin: end the sessions of an AWS role that were issued until now, in whosever hands they are.

    AWS takes none back, so the role denies them everything; sessions that are issued later are not touched. The exit
    code is 6 where it was not seen that a session from before is refused. Needs a declared `denier`, and a Vault token
    that may use its key.
    """
    from orchestrator.cli import failures, interruption
    from orchestrator.cli.connect import vault_admin
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console
    from orchestrator.clock import SystemClock
    from orchestrator.provision.aws.denial import Denier

    account = _account(file, name)
    named = account.role(role)
    if named is None:
        raise UsageError(f"`{name}` has no role `{role}`", hint=f"there is: {', '.join(sorted(account.roles))}")
    with vault_admin() as admin:
        denier = Denier(account, named, admin, SystemClock(), failures.note)
        if lift:
            policy = interruption.run(lambda: denier.lift(agent))
            if as_json:
                print_json({"role": named.arn, "policy": policy, "lifted": True})
            else:
                console().print(f"{policy} of {named.arn} is taken away", markup=False, highlight=False)
            return
        denial = interruption.run(lambda: denier.deny(agent))
    if as_json:
        print_json(denial)
    else:
        whose = f" that were issued for {agent}" if agent else ""
        until = f"{denial.before:%Y-%m-%d %H:%M:%S} UTC"
        told = f"the sessions of {denial.role}{whose} from before {until} are denied ({denial.policy}); {denial.note}"
        console().print(told, markup=False, highlight=False)
    if denial.evidence != "refused":
        raise typer.Exit(int(ExitCode.UNCONFIRMED))


def _account(file: Path, name: str) -> AwsAccount:
    from orchestrator.issuers.aws import AwsAccount
    from orchestrator.issuers.declared import load_issuers

    found = load_issuers(file)
    account = found.get(name)
    if not isinstance(account, AwsAccount):
        known = sorted(each for each, issuer in found.items() if isinstance(issuer, AwsAccount))
        raise UsageError(f"there is no AWS account `{name}` in {file}", hint=f"there is: {', '.join(known) or 'none'}")
    return account
