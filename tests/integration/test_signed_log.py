"""The histories of runs are in a signed log, which others verify with the public key alone."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from aics_tlog import MerkleTree, parse_note, parse_vkey, verify_checkpoint, verify_leaf_inclusion
from bench import Bench, Setup
from escaped import escaped_secrets
from fork_server import ForkServer
from signed_ledger import STEP, public_keys, small_run
from test_serve import Served, served_on
from waiting import wait_for

from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.devstack.stack import DevStack
from orchestrator.errors import EvidenceRejected, ExitCode, UsageError
from orchestrator.evidence.log.checkpoint import Checkpoint
from orchestrator.evidence.log.proof import Proof
from orchestrator.evidence.log.publishing import destination, published_in
from orchestrator.evidence.log.run_evidence import RunEvidence
from orchestrator.evidence.log.verification import Kept, Verified, verify
from orchestrator.ledger.events import LeaseEnded, LeaseRequested, LeaseRevoking, RunFinished, RunStarted
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import Services
from orchestrator.secret import Secret

KEY = "transit/keys/orchestrator-history"


def verified(bench: Bench, url: str, *kept: str) -> Verified:
    with open_ledger(url, clock=SystemClock()) as ledger:
        elsewhere = [Kept("elsewhere", note) for note in kept]
        return verify(ledger, ledger.log, public_keys(bench, ledger.log.origin()), elsewhere)


def notes(url: str) -> list[str]:
    with open_ledger(url, clock=SystemClock()) as ledger:
        return [each.note for each in ledger.log.checkpoints()]


def test_what_has_run_is_signed_when_its_process_ends(bench: Bench, setup: Setup) -> None:
    for _ in range(3):
        assert bench.run(STEP, ledger_url=setup.ledger_url).exit_code is ExitCode.DONE
    found = verified(bench, setup.ledger_url)
    assert found.problems == []
    assert found.unsigned == []
    assert (found.runs, found.entries, found.signed, found.checkpoints) == (3, 3, 3, 3)


def test_a_proof_is_verified_by_an_implementation_that_is_not_ours(bench: Bench, setup: Setup) -> None:
    runs = [bench.run(STEP, ledger_url=setup.ledger_url).run_id for _ in range(3)]
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        key = parse_vkey(str(public_keys(bench, ledger.log.origin())[0]))
        for position, run in enumerate(runs):
            text = RunEvidence.of(ledger.log, run).proof.text()
            proof = Proof.parse(text)
            head, _, note = text.partition("\n\n")
            assert head.splitlines()[0] == "c2sp.org/tlog-proof@v1"
            assert verify_checkpoint(parse_note(note), key, expected_origin=ledger.log.origin()).log_ok
            signed = Checkpoint.of_text(parse_note(note).text)
            assert proof.index == position
            assert json.loads(proof.extra)["run"] == run
            assert json.loads(proof.extra)["head"] == ledger.events(run)[-1].digest
            assert verify_leaf_inclusion(proof.extra, position, signed.size, list(proof.path), signed.root)
        theirs = MerkleTree([entry.leaf.data() for entry in ledger.log.entries()])
        for stored in ledger.log.checkpoints():
            opened = verify_checkpoint(parse_note(stored.note), key)
            assert opened.log_ok
            assert Checkpoint.of_text(parse_note(stored.note).text).root == theirs.root(stored.size)


def test_a_run_that_is_added_to_after_its_end_is_logged_again(bench: Bench, setup: Setup) -> None:
    """What was still to be taken back when it ended is on record later."""

    async def late() -> None:
        async with open_services(bench.config(ledger_url=setup.ledger_url), redactor=Redactor()) as services:
            started = RunStarted(workflow="w", digest="d", agent="a", trigger="manual", inputs={}, steps=("s",))
            fence = await services.ledger.begin_run("run_late", started)
            asked = LeaseRequested(
                lease_id="lease_late",
                step="s",
                attempt=1,
                grant="g",
                grant_kind="secret",
                resource="r",
                scope={},
                ttl=9,
            )
            finished = RunFinished(state=RunState.FAILED, exit_code=4)
            revoking = LeaseRevoking(lease_id="lease_late", reason="step ended")
            await services.ledger.append("run_late", fence, [asked, revoking, finished])
            assert (await services.checkpointing.make()) is not None
            assert (await services.checkpointing.make()) is None, "nothing is new"
            await services.ledger.append("run_late", fence, [LeaseEnded(lease_id="lease_late", valid_until=None)])

    asyncio.run(late())
    found = verified(bench, setup.ledger_url)
    assert (found.problems, found.unsigned, found.entries, found.checkpoints) == ([], [], 2, 2)
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        assert RunEvidence.of(ledger.log, "run_late").leaf.head.seq == 5


def test_several_processes_make_one_log(bench: Bench, setup: Setup) -> None:
    async def write(process: int, services: Services) -> None:
        for number in range(15):
            await small_run(services, f"run_{process}_{number}")
            await services.checkpointing.make()

    async def go() -> None:
        config = bench.config(ledger_url=setup.ledger_url)
        async with open_services(config, redactor=Redactor()) as one, open_services(config, redactor=Redactor()) as two:
            await asyncio.gather(write(1, one), write(2, two))

    asyncio.run(go())
    found = verified(bench, setup.ledger_url, *notes(setup.ledger_url))
    assert (found.problems, found.unsigned, found.entries, found.runs) == ([], [], 30, 30)


@contextmanager
def without_the_right_to_sign(bench: Bench) -> Iterator[None]:
    path = "sys/policies/acl/orchestrator-runtime"
    policy = bench.vault.read(path)["data"]["policy"]
    bench.vault.write_data(path, data={"policy": policy.replace("transit/sign/orchestrator-history", "transit/sign/x")})
    try:
        yield
    finally:
        bench.vault.write_data(path, data={"policy": policy})


def test_without_the_right_to_sign_runs_go_on_and_the_next_checkpoint_has_them(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    url = bench.config().ledger_url
    with without_the_right_to_sign(bench):
        assert bench.run(STEP).exit_code is ExitCode.DONE
        (told,) = [record.getMessage() for record in caplog.records if "cannot be signed" in record.getMessage()]
        assert "orchestrator provision apply" in told
        found = verified(bench, url)
        assert (found.problems, found.signed, found.checkpoints) == ([], 0, 0)
        answer = ForkServer.of_session.command("history", "checkpoint", environment=bench.environment())
        assert answer.returncode == ExitCode.REFUSED
        assert "orchestrator provision apply" in answer.stderr
    answer = ForkServer.of_session.command("history", "checkpoint", "--json", environment=bench.environment())
    assert answer.returncode == ExitCode.DONE
    assert json.loads(answer.stdout)["size"] == 1
    assert verified(bench, url).signed == 1


def test_runs_that_ended_since_are_said_to_be_unsigned(bench: Bench, children: ForkServer, tmp_path: Path) -> None:
    bench.run(STEP)
    with without_the_right_to_sign(bench):
        bench.run(STEP)
    key = tmp_path / "vkey"
    key.write_text(children.command("history", "keys", environment=bench.environment()).stdout)
    done = children.command("history", "verify", "--key", str(key), environment=bench.environment())
    assert done.returncode == ExitCode.DONE, done.stdout
    assert "1 run has ended and is not signed yet" in done.stdout


def test_nothing_is_signed_that_contradicts_what_was_signed(bench: Bench, children: ForkServer) -> None:
    """A log that was rewritten gets no signature of ours: it would look as if it had always been so."""
    bench.run(STEP)
    bench.run(STEP)
    path = bench.config().ledger_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE log_leaf SET head = lower(hex(randomblob(32))) WHERE position = 0")
        connection.commit()
    assert bench.run(STEP).exit_code is ExitCode.DONE
    assert len(notes(bench.config().ledger_url)) == 2
    answer = children.command("history", "checkpoint", environment=bench.environment())
    assert answer.returncode == ExitCode.STEP_FAILED
    assert "is not what was signed when it had 2 entries" in answer.stderr


def test_a_service_that_has_signed_more_signs_nothing_for_a_ledger_that_was_set_back(
    bench: Bench, tmp_path: Path
) -> None:
    """Also where the checkpoints are set back with it: the process remembers."""
    path = Path(bench.config().ledger_url.removeprefix("sqlite:///"))

    async def go() -> None:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            store = services.checkpointing.store
            for number in range(3):
                await small_run(services, f"run_{number}")
            await services.checkpointing.make()
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("UPDATE log_leaf SET seq = 1 WHERE position = 0")
                connection.execute("DELETE FROM log_checkpoint")
                connection.commit()
            await small_run(services, "run_more")
            with pytest.raises(EvidenceRejected, match="is not what was signed when it had 3 entries"):
                await services.checkpointing.make()
            assert store.newest_checkpoint() is None

    asyncio.run(go())


def test_after_a_rotation_of_the_key_both_versions_verify(bench: Bench, children: ForkServer) -> None:
    bench.run(STEP)
    bench.vault.write_data(f"{KEY}/rotate", data={})
    bench.run(STEP)
    keys = children.command("history", "keys", "--json", environment=bench.environment())
    newest, *older = json.loads(keys.stdout)
    assert older
    assert verified(bench, bench.config().ledger_url).problems == []
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        assert [str(key) for key in reversed(public_keys(bench, ledger.log.origin()))] == [newest, *older]
        only_new = verify(ledger, ledger.log, [public_keys(bench, ledger.log.origin())[-1]])
    (problem,) = only_new.problems
    assert "the checkpoint of 1 entries: it is not signed by a key that is trusted here" in problem


def test_a_service_signs_and_publishes_while_it_goes_on(bench: Bench, children: ForkServer) -> None:
    published = bench.directory / "published"
    with served_on(bench, children) as served:
        assert isinstance(served, Served)
        served.environment["ORCHESTRATOR_HISTORY_PUBLISH__FILE"] = f"file://{published}"
        served.put("often", "{ every: 1s }")
        served.start()
        wait_for(published.exists, "a checkpoint that is published")
        wait_for(lambda: len(notes(served.ledger_url)) >= 2, "two checkpoints")
        assert served.stop() == 0
        told = list(published_in(published.read_text()))
        found = verified(bench, served.ledger_url, *told)
    assert (found.problems, found.unsigned) == ([], [])
    assert Checkpoint.of_text(parse_note(told[-1]).text).size == found.entries, "the last one is published at the end"
    assert found.kept == len(told)


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A clone with an upstream."""
    for name, value in {"NAME": "Auditor", "EMAIL": "auditor@example.com"}.items():
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    upstream, clone = tmp_path / "upstream.git", tmp_path / "clone"
    subprocess.run(["git", "init", "--quiet", "--bare", str(upstream)], check=True)
    subprocess.run(["git", "clone", "--quiet", str(upstream), str(clone)], check=True, capture_output=True)
    (clone / "README").write_text("checkpoints")
    (clone / "unrelated").write_text("not to be committed by us")
    git(clone, "add", "README")
    git(clone, "commit", "--quiet", "-m", "first")
    git(clone, "push", "--quiet", "--set-upstream", "origin", "HEAD")
    git(clone, "add", "unrelated")
    return upstream, clone


def publish_with(bench: Bench, **to: str) -> None:
    addresses = {name: Secret(address) for name, address in to.items()}
    assert bench.run(STEP, history_publish=addresses).exit_code is ExitCode.DONE


def test_checkpoints_are_commits_of_a_repository_and_are_pushed(bench: Bench, repository: tuple[Path, Path]) -> None:
    upstream, clone = repository
    for _ in range(2):
        publish_with(bench, git=f"git://{clone}")
    subjects = git(upstream, "log", "--format=%s").splitlines()
    assert [subject.split(" of ")[0] for subject in subjects] == ["Checkpoint 2", "Checkpoint 1", "first"]
    (file,) = [name for name in git(upstream, "ls-tree", "--name-only", "HEAD").split() if name != "README"]
    told = list(published_in(git(upstream, "show", f"HEAD:{file}")))
    assert told == notes(bench.config().ledger_url)
    assert git(clone, "diff", "--cached", "--name-only").split() == ["unrelated"], "what others prepare stays theirs"
    assert verified(bench, bench.config().ledger_url, *told).problems == []


def test_checkpoints_are_lines_of_syslog(bench: Bench) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)
        publish_with(bench, syslog=f"syslog://127.0.0.1:{server.getsockname()[1]}")
        line = server.recv(65536).decode().rstrip("\0")
    assert "\n" not in line
    lines = f"Nov 1 10:00:00 host sshd: unrelated\nNov 1 10:00:01 host {line.partition('>')[2]}\n"
    assert list(published_in(lines)) == notes(bench.config().ledger_url)


def test_checkpoints_are_posted(bench: Bench, tmp_path: Path) -> None:
    bodies: list[bytes] = []

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(202 if len(bodies) > 1 else 503)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Taking) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/log/token-of-ours"
        publish_with(bench, post=address)
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            assert ledger.log.published() == {}, "it was not taken"
        publish_with(bench, post=address)
        server.shutdown()
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        assert ledger.log.published()["post"].size == 2
    assert [body.decode() for body in bodies] == notes(bench.config().ledger_url)


BROKEN = {
    "a folder that is not there": "file:///nowhere/at/all",
    "no repository": "git:///tmp",
    "nobody listens": "http://127.0.0.1:9/secret-path",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_published_is_told_and_tried_again(
    bench: Bench, children: ForkServer, tmp_path: Path, name: str
) -> None:
    bench.run(STEP)
    environment = bench.environment(ORCHESTRATOR_HISTORY_PUBLISH__AUDIT=BROKEN[name])
    answer = children.command("history", "checkpoint", environment=environment)
    assert answer.returncode == ExitCode.UNREACHABLE
    assert "the checkpoint could not be published to `audit`" in answer.stderr
    assert "secret-path" not in answer.stderr
    published = tmp_path / "published"
    environment["ORCHESTRATOR_HISTORY_PUBLISH__AUDIT"] = f"file://{published}"
    assert children.command("history", "checkpoint", environment=environment).returncode == ExitCode.DONE
    assert list(published_in(published.read_text())) == notes(bench.config().ledger_url)


@pytest.mark.parametrize(
    "address",
    ["file:relative", "file://host/path", "ftp://x/y", "http://example.com/plain", "git:repo", "", "syslog:/x"],
)
def test_an_address_that_is_none_is_refused_before_anything_runs(bench: Bench, address: str) -> None:
    with pytest.raises(UsageError, match="checkpoints cannot be published to `audit`"):
        destination("audit", Secret(address))
    with pytest.raises(UsageError):
        bench.run(STEP, history_publish={"audit": Secret(address)})


def test_while_vault_is_away_nothing_waits_long_and_nothing_is_lost(own_bench: tuple[DevStack, Bench]) -> None:
    servers, bench = own_bench
    bench.run(STEP)
    servers.openbao.stop()

    async def go() -> float:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            await small_run(services, "run_more")
            begun = services.clock.monotonic()
        return services.clock.monotonic() - begun

    assert asyncio.run(go()) < 30
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        assert ledger.log.is_behind()
        assert [each.size for each in ledger.log.checkpoints()] == [1]


def test_no_secret_is_in_what_is_published_or_proven(bench: Bench, children: ForkServer, tmp_path: Path) -> None:
    published = tmp_path / "published"
    publish_with(bench, file=f"file://{published}")
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        (run,) = ledger.runs()
    out = tmp_path / "out"
    answer = children.command("history", "prove", run.run_id, "-o", str(out), environment=bench.environment())
    assert answer.returncode == ExitCode.DONE
    assert len(list(out.iterdir())) == 2
    assert escaped_secrets([out, tmp_path]) == []
