"""`orchestrator serve`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.log_format import LogFormat
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.server.api.service import ApiConfig, Door
    from orchestrator.server.pages.login.declared import Login

WorkflowFolder = Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The folder with the workflows.")]
OfferedFolder = Annotated[
    Path | None,
    typer.Argument(metavar="[FOLDER]", help="The workflows that other programs may ask for by their name."),
]
FOLDER = Path("workflows")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)
    app.command("worker")(worker)


MaxRuns = Annotated[int, typer.Option(min=1, help="Runs that may go on at once in this process; others wait.")]
Drain = Annotated[float, typer.Option(min=0, help="Seconds that runs may take to end after a signal.")]
Listen = Annotated[str, typer.Option(metavar="HOST:PORT", help="Where /healthz, /readyz and /metrics are answered.")]
NoListen = Annotated[bool, typer.Option("--no-listen", help="Answer nowhere.")]
Approvals = Annotated[
    bool,
    typer.Option(
        "--approvals",
        help="Also take approvals there (/v1/approvals, Slack's buttons). Put TLS before it, but on this machine.",
    ),
]
Ui = Annotated[
    bool,
    typer.Option("--ui", help="Also show runs, leases and decisions as pages there, under /ui/: see docs/page.md."),
]
UiWithoutLogin = Annotated[
    bool,
    typer.Option(
        "--ui-without-login",
        help="With --ui: nobody logs in, and EVERYBODY who can log in to this machine may read everything. Takes an "
        "address of this machine alone.",
    ),
]
ApiAddress = Annotated[
    str | None, typer.Option("--api", metavar="HOST:PORT", help="Answer agents there: see docs/api.md.")
]
AgentsFile = Annotated[Path, typer.Option(metavar="FILE", help="With --api: who may call, and open which tasks.")]
ApiCert = Annotated[Path | None, typer.Option(metavar="FILE", help="With --api: a certificate, as PEM.")]
ApiKey = Annotated[Path | None, typer.Option(metavar="FILE", help="With --api: its key, as PEM.")]
ApiClientCa = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="With --api: whose certificates agents may show (SPIFFE X.509-SVIDs)."),
]
ApiUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="With --api: how others reach it, where that is not the address itself."),
]
Mcp = Annotated[bool, typer.Option("--mcp", help="With --api: answer MCP clients there, too: see docs/mcp.md.")]
McpHandOver = Annotated[
    bool, typer.Option("--mcp-hand-over", help="With --mcp: offer tools that hand credentials over, which models see.")
]
LogFormats = Annotated[LogFormat, typer.Option(help="How log records on standard error look.")]


def serve(
    folder: WorkflowFolder = FOLDER,
    max_runs: MaxRuns = 8,
    drain: Drain = 60.0,
    listen: Listen = "127.0.0.1:9464",
    no_listen: NoListen = False,
    approvals: Approvals = False,
    ui: Ui = False,
    ui_without_login: UiWithoutLogin = False,
    api: ApiAddress = None,
    agents: AgentsFile = Path("vault/agents.yaml"),
    api_cert: ApiCert = None,
    api_key: ApiKey = None,
    api_client_ca: ApiClientCa = None,
    api_url: ApiUrl = None,
    mcp: Mcp = False,
    mcp_hand_over: McpHandOver = False,
    log_format: LogFormats = LogFormat.TEXT,
    grace: options.Grace = None,
) -> None:
    """Run the workflows of a folder when their schedules say so, and go on where other processes died.

    With ORCHESTRATOR_QUEUE=true they are put into the shared queue instead, for workers. Changed files are loaded
    again. With --api agents open the tasks that files of the folder declare (`tools`), and call their tools there;
    with --mcp as the tools of an MCP server. SIGTERM and SIGINT end it: nothing new is started, and what runs may end
    within --drain seconds; then, or at a second signal, it is cancelled and revokes what it holds. The exit code is 0
    if nothing had to be cancelled.
    """
    if api is None and (mcp or mcp_hand_over):
        raise UsageError("--mcp and --mcp-hand-over need --api", hint="they say what is answered at that address")
    _serve(
        folder,
        max_runs,
        drain,
        None if no_listen else listen,
        log_format,
        grace,
        approvals=approvals,
        pages=_pages(None if no_listen else listen, ui=ui, without_login=ui_without_login),
        works=False,
        offered=None,
        api=_api(api, agents, api_cert, api_key, api_client_ca, api_url, _doors(mcp or mcp_hand_over, mcp_hand_over)),
    )


def _pages(listen: str | None, *, ui: bool, without_login: bool) -> Login | bool:
    """Who may log in to the pages; True where everybody on this machine may look, False where there are none.

    Raises UsageError where others could read them, or a package is missing.
    """
    if not ui:
        if without_login:
            raise UsageError("--ui-without-login needs --ui", hint="it says that the pages may be read by everybody")
        return False
    if listen is None:
        raise UsageError("--ui is answered by the listener, and --no-listen leaves that out")
    try:
        import orchestrator.server.pages.serving  # noqa: F401 -- whether it can be imported
    except ImportError as error:
        raise options.missing_extra("--ui", error, "ui") from error
    return _for_everybody(listen) if without_login else _login(listen)


def _for_everybody(listen: str) -> bool:
    from orchestrator.network.loopback import is_loopback

    if not is_loopback(listen.rpartition(":")[0]):
        raise UsageError(
            f"without a login the pages are for this machine alone, and {listen} is not",
            hint="let people log in (docs/page.md), or listen at 127.0.0.1 and reach it by SSH",
        )
    return True


def _login(listen: str) -> Login:
    from orchestrator.configured.pages import login
    from orchestrator.settings import load_settings

    return login(load_settings(), listen)


def _doors(wanted: bool, hand_over: bool) -> tuple[Door, ...]:
    if not wanted:
        return ()
    try:
        from orchestrator.server.mcp.http import mcp_door
    except ImportError as error:
        raise options.missing_extra("MCP", error, "mcp") from error
    return (partial(mcp_door, hand_over=hand_over),)


def _api(
    address: str | None,
    agents: Path,
    certificate: Path | None,
    key: Path | None,
    authorities: Path | None,
    url: str | None,
    doors: tuple[Door, ...],
) -> ApiConfig | None:
    if address is None:
        return None
    try:
        from orchestrator.server.api.service import ApiConfig
        from orchestrator.server.api.tls import TlsFiles
    except ImportError as error:
        raise options.missing_extra("the API", error, "api") from error
    if (certificate is None) != (key is None) or (authorities is not None and certificate is None):
        raise UsageError("--api-cert and --api-key belong together, and --api-client-ca to both")
    tls = TlsFiles(certificate, key, authorities) if certificate is not None and key is not None else None
    return ApiConfig(address=address, agents=agents, tls=tls, doors=doors, url=url)


def worker(
    folder: OfferedFolder = None,
    max_runs: MaxRuns = 8,
    drain: Drain = 60.0,
    listen: Listen = "127.0.0.1:9465",
    no_listen: NoListen = False,
    approvals: Approvals = False,
    log_format: LogFormats = LogFormat.TEXT,
    grace: options.Grace = None,
) -> None:
    """Carry out queued runs (`orchestrator queue add`), and go on where other processes died.

    Any number of workers share a ledger in PostgreSQL. With a FOLDER other programs may ask for its workflows by name
    (see docs/workers.md). Signals and exit codes are those of `serve`.
    """
    _serve(
        None,
        max_runs,
        drain,
        None if no_listen else listen,
        log_format,
        grace,
        approvals=approvals,
        works=True,
        offered=folder,
    )


def _serve(
    folder: Path | None,
    max_runs: int,
    drain: float,
    listen: str | None,
    log_format: LogFormat,
    grace: float | None,
    *,
    approvals: bool,
    pages: Login | bool = False,
    works: bool,
    offered: Path | None,
    api: ApiConfig | None = None,
) -> None:
    from orchestrator.cli import interruption
    from orchestrator.cli.connect import log_to_stderr
    from orchestrator.cli.tracing import traced
    from orchestrator.configured.services import redactor, runner_config
    from orchestrator.server import serve as service
    from orchestrator.settings import load_settings

    settings = load_settings()
    level = settings.log_level if "log_level" in settings.model_fields_set else "info"
    log_to_stderr(level, log_format)
    config = service.ServeConfig(
        folder=folder,
        max_runs=max_runs,
        drain=drain,
        listen=listen,
        approvals=approvals,
        pages=pages,
        queue=settings.queue and not works,
        works=works,
        offered=offered,
        sweep_interval=settings.sweep_interval,
        api=api,
    )
    # Kept until every thread has ended: the policy engine must end in this one.
    runner = replace(
        runner_config(settings, grace=grace),
        parks=True,
        keeps=api is not None,
        role="worker" if works else "serve",
        max_runs=max_runs,
    )
    with traced() as spans:
        code = interruption.run(lambda: service.serve(runner, config, redactor=redactor(), observer=spans))
    raise typer.Exit(int(code))
