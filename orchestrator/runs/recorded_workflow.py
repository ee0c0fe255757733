"""The workflow of a run that was recorded earlier, by whatever process: the one place where its text is read."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from orchestrator.actions.catalog import catalog
from orchestrator.errors import NotAsRecorded
from orchestrator.ledger.coordination.runners import RunnerStore
from orchestrator.workflow.loader import LoadedWorkflow, digest_of, load_text


def recorded_workflow(store: RunnerStore, digest: str, name: str, *, directory: str = "") -> LoadedWorkflow:
    """The workflow with this digest. Whoever may write the ledger's tables cannot have another one run in its place.

    `directory` is where its file was, as far as that is on record.
    Raises NotAsRecorded, and InvalidWorkflow where it does not load here (an action is missing, say).
    """
    return replace(_loaded(recorded_text(store, digest), name), directory=directory)


def recorded_text(store: RunnerStore, digest: str) -> str:
    """The text with this digest, looked at but not read. Raises NotAsRecorded."""
    text = store.text(digest)
    if text is None:
        raise NotAsRecorded("the workflow's text is not in the ledger")
    if digest_of(text) != digest:
        raise NotAsRecorded(
            f"the workflow's text in the ledger is not the one that was recorded: its digest is not {digest}",
            hint="find out who can write the ledger's table `workflow_text`, and begin a new run with the file",
        )
    return text


@lru_cache(maxsize=64)
def _loaded(text: str, name: str) -> LoadedWorkflow:
    """Many runs of a dead service are of few workflows."""
    return load_text(text, filename=f"{name} in the ledger", actions=catalog)
