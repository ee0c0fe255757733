"""From the settings to the parts that a process works with: by the command line, and by programs that embed us."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.approvals.slack import SlackApprovals
    from orchestrator.assembly import RunnerConfig
    from orchestrator.issuers.declared import DeclaredIssuer
    from orchestrator.policy.types import PolicyEngine
    from orchestrator.redaction.redactor import Redactor
    from orchestrator.secret import Secret
    from orchestrator.settings import Settings


@cache
def redactor() -> Redactor:
    """The one redactor of this process: it learns every secret that is issued."""
    from orchestrator.redaction.redactor import Redactor

    return Redactor()


def policy_engine(settings: Settings) -> PolicyEngine:
    """The policy engine that the settings name; its own token is a secret like those that are issued."""
    from orchestrator.policy.opening import open_engine
    from orchestrator.policy.watched import OnError

    engine = open_engine(
        settings.policy,
        path=settings.policy_path,
        on_error=OnError(settings.policy_on_error),
        options=settings.policy_options,
    )
    if (remember_with := getattr(engine, "remember_with", None)) is not None:
        remember_with(redactor().add)
    return engine


def runner_config(settings: Settings, *, grace: float | None = None) -> RunnerConfig:
    """Everything a runner is told from outside; `grace`, in seconds, wins over the settings."""
    from orchestrator.assembly import RunnerConfig
    from orchestrator.configured.vault_login import vault_config
    from orchestrator.credentials.types import Confirm
    from orchestrator.evidence.retention import Retention
    from orchestrator.secret import Secret

    return RunnerConfig(
        vault=vault_config(settings),
        ledger_url=settings.ledger_location(),
        policy=policy_engine(settings),
        endpoints=settings.endpoints,
        primaries=settings.primaries,
        token_issuer=settings.token_issuer,
        issuers=_issuers(settings),
        grace=settings.grace if grace is None else grace,
        max_output_bytes=settings.max_output_bytes,
        max_parallel=settings.max_parallel,
        settle=settings.settle,
        confirm={name: Confirm(word) for name, word in settings.confirm.items()},
        try_dead_logins=settings.try_dead_logins,
        connection_leases=settings.connection_leases,
        dead_after=settings.dead_after,
        max_takeovers=settings.max_takeovers,
        confinement=settings.confinement,
        slack=_slack(settings),
        notify={name: Secret(url.get_secret_value()) for name, url in settings.notify.items()},
        retention=Retention(settings.keep_inputs, settings.keep_outputs),
        history_publish={name: Secret(url.get_secret_value()) for name, url in settings.history_publish.items()},
        own_secrets=_secrets_of(settings),
    )


def _issuers(settings: Settings) -> Mapping[str, DeclaredIssuer]:
    from orchestrator.issuers.declared import load_issuers

    return {} if settings.issuers is None else load_issuers(settings.issuers)


def _slack(settings: Settings) -> SlackApprovals | None:
    from orchestrator.approvals.slack import SlackApprovals

    if settings.slack_channel is None:
        return None
    if settings.slack_token_file is None:
        raise UsageError(
            "requests for approval cannot be posted to ORCHESTRATOR_SLACK_CHANNEL without a token",
            hint="set ORCHESTRATOR_SLACK_TOKEN_FILE to a file with a bot token that has the scope chat:write",
        )
    return SlackApprovals(settings.slack_channel, settings.slack_token_file, settings.slack_api)


def _secrets_of(settings: Settings) -> tuple[Secret, ...]:
    """What this process was told besides what it needs: a program that it starts may come by it as well."""
    from orchestrator.redaction.own_secrets import secrets_in
    from orchestrator.secret import Secret

    addresses = (*settings.provision_databases.values(), *settings.catalog_databases.values())
    told = [secret for address in addresses for secret in secrets_in(address.get_secret_value())]
    given = (settings.auth_secret_id, settings.auth_token)
    return (*told, *(Secret(each.get_secret_value()) for each in given if each is not None))
