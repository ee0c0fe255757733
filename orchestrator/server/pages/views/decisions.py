"""One decision of a policy: what was asked, what was answered, and why."""

from __future__ import annotations

from orchestrator.server.pages.answers import Asked, NotThere, Page
from orchestrator.server.pages.sources import Sources
from orchestrator.server.pages.views.evidence import dropped_of
from orchestrator.server.pages.views.runs import run_of


def show_decision(sources: Sources, asked: Asked) -> Page:
    """All answers for one attempt at a step, in the order in which they were given."""
    run = run_of(sources, asked.names["run"])
    step, attempt = asked.names["step"], asked.names["attempt"]
    found = [
        event
        for event in sources.reader.events(run.run_id, step=step, kind="decision")
        if str(event.data.get("attempt")) == attempt
    ]
    if not found:
        hint = "The page of the run shows which decisions there are."
        raise NotThere(f"No decision about attempt {attempt} at {step} is in this run.", hint=hint)
    values = {
        "asked": asked,
        "run": run,
        "step": step,
        "attempt": attempt,
        "decisions": found,
        "dropped": dropped_of(sources, run.run_id, run.dropped),
    }
    return Page("decision.html", values)
