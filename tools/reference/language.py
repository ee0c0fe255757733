"""The workflow language: every model and key, from the models that read it."""

from __future__ import annotations

from typing import get_args

from orchestrator.grants.models import AnyGrant
from orchestrator.workflow.models.workflow import Workflow
from tools.reference.markdown import fenced, page
from tools.reference.samples import grant_of, sample
from tools.reference.schemas import sections

_HEAD = """\
# The workflow language

A workflow file is YAML, with the keys below and no others. `orchestrator validate` says what is wrong with a file, and
`orchestrator schema` prints the JSON Schema that editors complete from. Durations are written `90s`, `5m` or `1h30m`
(a plain number is seconds). Names of keys that are maps are yours. What may stand in `with` is on the page of the
[actions](actions.md), what may stand in `${{ }}` on that of [expressions](expressions.md).
"""


def text() -> str:
    """The page."""
    schema = Workflow.model_json_schema(by_alias=True, mode="validation")
    kinds = [grant.model_fields["kind"].annotation for grant in get_args(AnyGrant)]
    examples = [(str(get_args(kind)[0]), grant_of(str(get_args(kind)[0]))) for kind in kinds]
    return page(
        _HEAD,
        sections("Workflow", schema),
        "## Examples",
        "A pipeline over a database, a service and Slack, as it is in `workflows/customer_feedback.yaml`:",
        fenced("yaml", sample("customer_feedback")),
        *(
            f"A grant of the kind `{kind}`, from the samples:\n\n{fenced('yaml', grant)}"
            for kind, grant in examples
            if grant
        ),
    )
