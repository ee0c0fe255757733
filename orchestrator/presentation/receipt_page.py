"""The receipt of a lease for people: as a document of its own, or as the content of another page. All is escaped."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.evidence.log.checkpoint import Checkpoint
from orchestrator.evidence.log.proof import Proof
from orchestrator.jsontypes import JsonObject, counted
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.log.leaf import Leaf
from orchestrator.presentation.document import document, moment, row, table
from orchestrator.presentation.events import database_word, words
from orchestrator.presentation.receipt_story import EXACT, at, last_of, part, parts, story, text, what

_STYLE = """
.lead { font-size: 1.1rem } .facts { margin: .3rem 0 } dd { margin: 0; overflow-wrap: anywhere }
.facts div { display: grid; grid-template-columns: 9rem minmax(0, 1fr); gap: .5rem; padding: .1rem 0 }
dt { color: #5b6776 } pre { background: #f1f4f8; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere }
h1 code { font-weight: 400; font-size: .72em } a { color: #1a5599 }
@media (max-width: 40rem) { .facts div { grid-template-columns: 6rem minmax(0, 1fr) } }
@media screen and (prefers-color-scheme: dark) {
dt { color: #97a5b5 } pre { background: #1d2530 } a { color: #8fbdf0 } }
"""

_EVENTS = ("event", "time", "what", "who")
_VOTES = ("who", "said", "when", "why", "signature")
_WITNESSES = ("witness", "said", "where", "when", "asked by")

_NOT_OF_VAULT = ("oauth2", "aws")
"""Kinds of grants that another server issues."""


@dataclass(frozen=True, slots=True)
class Beside:
    """The JSON document that proves what the page says: its name, where it is from there, and its SHA-256 in hex."""

    name: str
    link: str = ""
    digest: str = ""


def receipt_page(receipt: JsonObject, beside: Beside) -> str:
    """A receipt as one self-contained document."""
    return document(f"Receipt of {part(receipt, 'lease').get('id')}", receipt_content(receipt, beside), _STYLE)


def receipt_content(receipt: JsonObject, beside: Beside) -> str:
    """The same as HTML from `h1` on, for a page around it."""
    lease = part(receipt, "lease")
    return "".join(
        (
            f"<h1>Receipt of a credential <code>{text(lease.get('id'))}</code></h1>",
            f'<p class="lead">{story(receipt)}</p>',
            '<p class="mute">This page is for reading. It proves nothing by itself: what does is the document '
            f'{_named(beside)}, as said <a href="#proof">below</a>.</p>',
            _section("happened", "What happened", table(_EVENTS, _event_rows(receipt))),
            _section("decision", "The decision", _decision(receipt)),
            _section("approvals", "Who was asked to agree", _approvals(receipt)),
            _section("witnesses", "Who says that it is gone", _witnesses(receipt)),
            _section("credential", "The credential", _credential(receipt)),
            _section("proof", "The proof", _proof(receipt, beside)),
        )
    )


def _section(name: str, title: str, content: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{content}</section>'


def _named(beside: Beside) -> str:
    name = f"<code>{text(beside.name)}</code>"
    return f'<a href="{text(beside.link)}" download>{name}</a>' if beside.link else name


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    """Names, and what is HTML; without what is empty."""
    shown = (f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts if value)
    return f'<dl class="facts">{"".join(shown)}</dl>'


def _event_rows(receipt: JsonObject) -> Iterator[str]:
    """The lease, and what was decided and said of its step before it."""
    decided = [part(receipt, "decision")] if receipt.get("decision") else []
    events = [*decided, *_asked(receipt), *parts(receipt, "approvals"), *parts(receipt, "history")]
    for event in sorted(events, key=lambda each: int(str(each["seq"]))):
        kind = str(event["kind"])
        label = kind.removeprefix("lease.").replace(".", " ").replace("_", " ")
        said = text(words(kind, event, UTC))
        told = f"<strong>{text(label)}</strong>" + (f": {said}" if said else "")
        yield row(_EVENTS, (text(event["seq"]), _millis(event["time"]), told, text(_who(event, receipt))))


def _millis(value: object) -> str:
    time = datetime.fromisoformat(str(value))
    return moment(time, f"{EXACT}.{time.microsecond // 1000:03}")


def _who(event: JsonObject, receipt: JsonObject) -> str:
    """By whose word it is so."""
    issuer = "its issuer" if part(receipt, "lease").get("grant_kind") in _NOT_OF_VAULT else "Vault"
    match event["kind"]:
        case "decision":
            return f"the policy ({event.get('engine')})"
        case "approval.voted":
            return str(event.get("by"))
        case "lease.requested":
            return f"the orchestrator, for {part(receipt, 'run').get('agent')}"
        case "lease.issued" | "lease.renewed":
            return issuer
        case "lease.denied":
            return f"{issuer}, or the orchestrator"
        case "lease.vault_revoked":
            return "Vault"
        case "lease.login_tried":
            return "the database server"
        case "lease.revoked":
            return _confirmed(event)
    return "the orchestrator"


def _confirmed(event: JsonObject) -> str:
    word = database_word(event.get("witness"))
    if word is not None:
        return f"its database, asked by {word.asked_by}"
    return {"vault": "Vault", "issuer": "its issuer"}.get(str(event.get("confirmed_by")), "its database")


def _decision(receipt: JsonObject) -> str:
    decision = part(receipt, "decision")
    if not decision:
        return "<p>No decision of a policy is on record for this attempt.</p>"
    asked = part(decision, "input")
    told = f"<h3>What was asked</h3><pre>{text(json.dumps(asked, indent=2, ensure_ascii=False))}</pre>" if asked else ""
    facts = (
        ("answer", "<strong>allowed</strong>" if decision.get("allow") else '<strong class="bad">denied</strong>'),
        ("because", _lines(decision.get("reasons"))),
        ("demands", text(json.dumps(decision["obligations"])) if decision.get("obligations") else ""),
        ("policy engine", text(decision.get("engine"))),
        ("revision", _code(decision.get("revision"))),
        ("input digest", _input_digest(receipt, decision)),
        ("decision id", _code(decision.get("decision_id"))),
        ("when", at(decision.get("time"))),
    )
    return _facts(facts) + told


def _input_digest(receipt: JsonObject, decision: JsonObject) -> str:
    """Of what was asked: where that is not given out, over its salt, too, so that nobody guesses it by its digest."""
    if decision.get("input_digest"):
        return _code(decision["input_digest"])
    chain = (part(each, "data") for each in parts(receipt, "chain") if each["seq"] == decision["seq"])
    digests = part(next(chain, {}), "kept")
    return f"{_code(digests['input'])}, over a salt that is kept with the question" if digests.get("input") else ""


def _lines(value: object, between: str = "<br>") -> str:
    return between.join(text(str(each)) for each in value) if isinstance(value, list | tuple) else ""


def _code(value: object) -> str:
    return f"<code>{text(str(value))}</code>" if value else ""


def _asked(receipt: JsonObject) -> Sequence[JsonObject]:
    """The requests for approval of the step, from the events of the run."""
    step, asked = part(receipt, "lease").get("step"), []
    for event in parts(receipt, "chain"):
        if event["kind"] == "approval.requested" and part(event, "data").get("step") == step:
            asked.append({"seq": event["seq"], "time": event["time"], "kind": event["kind"], **part(event, "data")})
    return asked


def _approvals(receipt: JsonObject) -> str:
    asked, votes = _asked(receipt), parts(receipt, "approvals")
    if not asked and not votes:
        return "<p>Nobody: the decision did not demand it.</p>"
    wanted = "".join(
        f"<p>Wanted on {at(each['time'])}: {text(each.get('count'))} of {_lines(each.get('approvers'), ', ')}.</p>"
        for each in asked
    )
    rows = (
        (
            text(each.get("by")),
            f"<strong>{text(each.get('verdict'))}</strong>",
            at(each.get("at")),
            text(each.get("comment")),
            _code(each.get("signature")),
        )
        for each in votes
    )
    given = table(_VOTES, [row(_VOTES, cells) for cells in rows]) if votes else "<p>Nobody has answered.</p>"
    return wanted + given


def _witnesses(receipt: JsonObject) -> str:
    match receipt.get("state"):
        case LeaseState.DENIED | LeaseState.FAILED:
            return "<p>Nobody has to: there was no credential.</p>"
        case LeaseState.EXPIRED:
            return f"<p>Nobody: it ran out by itself, on {at(part(receipt, 'lease').get('expires_at'))}.</p>"
        case LeaseState.ENDED:
            why = text(last_of(receipt, "lease.ended").get("reason")) or "it is of a kind that cannot be taken back"
            return f"<p>Nobody: the secret stays valid, as {why}.</p>"
    rows = [each for each in (_vault(receipt), _database(receipt), _password(receipt)) if each]
    return table(_WITNESSES, [row(_WITNESSES, cells) for cells in rows])


def _vault(receipt: JsonObject) -> Sequence[str]:
    revoked = last_of(receipt, "lease.revoked")
    told = last_of(receipt, "lease.vault_revoked") or (revoked if revoked.get("confirmed_by") == "vault" else {})
    if not told:
        return ()
    return ("Vault", "it is revoked", "", f"recorded {_millis(told['time'])}", "the orchestrator")


def _database(receipt: JsonObject) -> Sequence[str]:
    """Or the issuer, of what a database does not know."""
    revoked = last_of(receipt, "lease.revoked")
    by = revoked.get("confirmed_by")
    if by not in ("database", "issuer"):
        return ()
    word = database_word(revoked.get("witness"))
    if word is None:
        said = "the login is absent" if by == "database" else "it is no longer active"
        return (f"its {by}", said, "", f"recorded {_millis(revoked['time'])}", "the orchestrator")
    when = f"{_millis(word.at)}, by its own clock" if word.at else "not known"
    return ("its database", text(", ".join(word.said)), text(word.where), when, text(word.asked_by))


def _password(receipt: JsonObject) -> Sequence[str]:
    """Its own password, tried when it had to be dead; where that was not done, why."""
    tried = last_of(receipt, "lease.login_tried")
    if not tried:
        why = part(last_of(receipt, "lease.revoked"), "witness").get("password")
        return ("its own password", f"not tried: {text(why)}", "", "", "") if why else ()
    code = text(tried.get("sqlstate") or tried.get("reason"))
    match tried.get("refused"):
        case True:
            said = f"dead: refused ({code})"
        case False:
            said = '<strong class="bad">STILL WORKED</strong>'
        case _:
            said = f"not known: {text(tried.get('reason'))}"
    return ("its own password", said, text(tried.get("server")), _millis(tried["at"]), "the orchestrator")


def _credential(receipt: JsonObject) -> str:
    lease, run = part(receipt, "lease"), part(receipt, "run")
    caller = part(run, "caller")
    facts = (
        ("access", what(receipt)),
        ("kind", text(lease.get("grant_kind"))),
        ("Vault path", _code(lease.get("resource"))),
        ("known as", _code(lease.get("subject"))),
        ("wanted for", f"{text(lease.get('ttl'))} s"),
        ("would have ended", at(lease.get("expires_at"))),
        ("Vault lease", _code(lease.get("vault_lease_id"))),
        ("accessor", _code(lease.get("accessor"))),
        ("agent", text(run.get("agent"))),
        ("known by", text(", ".join(str(caller[name]) for name in ("issuer", "subject") if caller.get(name)))),
        ("started by", text(run.get("trigger"))),
        ("reason given", text(run.get("reason"))),
        ("goes on from", _code(run.get("retry_of"))),
        ("workflow digest", _code(run.get("digest"))),
    )
    return _facts(facts)


def _proof(receipt: JsonObject, beside: Beside) -> str:
    proof = Proof.parse(str(receipt["proof"]))
    checkpoint, leaf = Checkpoint.of_text(proof.checkpoint.rpartition("\n\n")[0] + "\n"), Leaf.of(proof.extra)
    root = base64.b64encode(checkpoint.root).decode()
    facts = (
        ("log", _code(checkpoint.origin)),
        ("checkpoint", f"of {counted(checkpoint.size, 'entry', 'entries')}, with the root {_code(root)}"),
        ("index", f"entry {proof.index:,}, counted from 0"),
        ("entry", f"the run's history up to event {leaf.head.seq}, whose digest is {_code(leaf.head.digest)}"),
        ("document", _named(beside)),
        ("its SHA-256", _code(beside.digest)),
    )
    return "".join(
        (
            "<p>Every event of the run is in the document, chained by digests; where the chain ends is an entry of a "
            "log that is signed. This needs the document and the log's public key, which you have from who runs the "
            "orchestrator, not from who gave you this page; no server, no Vault and no network:</p>",
            f"<pre>orchestrator history verify --key history.vkey {text(shlex.quote(beside.name))}</pre>",
            "<p>The key is what <code>orchestrator history keys</code> prints. Other programs can verify it, too: "
            "the formats are C2SP's signed note, tlog-checkpoint and tlog-proof.</p>",
            _facts(facts),
            f"<h3>The signed checkpoint</h3><pre>{text(proof.checkpoint.strip())}</pre>",
        )
    )
