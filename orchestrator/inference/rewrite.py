"""Writing inferred privileges into the text of a workflow, touching nothing but what changes.

The YAML parser says where everything is; the text is then edited at those places. A dump of the
parsed file would lay out anew what nobody asked about, such as the blanks in `{ kind: database }`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.grants.privileges import ALL_COLUMNS, Privilege, merge
from orchestrator.inference import yaml_text
from orchestrator.inference.workflows import StepNeeds
from orchestrator.inference.yaml_places import Places
from orchestrator.workflow.loader import LoadedWorkflow, load_text
from orchestrator.workflow.models.workflow import Workflow
from orchestrator.workflow.parameters import ActionCatalog
from orchestrator.workflow.problems import InvalidWorkflow


def to_write(needs: Sequence[StepNeeds], *, replace_roles: bool) -> list[StepNeeds]:
    """The steps whose grant is to be written: those that differ, and those with a role if that may be replaced.

    Raises UsageError, naming the steps, where something is missing and it is not known what else.
    """
    chosen = [need for need in needs if (replace_roles if need.role is not None else need.differs)]
    unknown = [need for need in chosen if not need.found.complete]
    if unknown:
        reasons = "; ".join(f"step `{need.step}`: {', and '.join(need.found.notes)}" for need in unknown)
        raise UsageError(
            f"not everything can be inferred, so nothing was written: {reasons}",
            hint="declare by hand what is missing there, or choose other steps with --step",
        )
    return chosen


def rewritten(loaded: LoadedWorkflow, needs: Sequence[StepNeeds], *, actions: ActionCatalog) -> LoadedWorkflow:
    """The workflow with the wanted privileges in the grants of these steps, valid and otherwise the same.

    Raises UsageError, naming the step, where the YAML is written in a way that cannot be edited without loss,
    such as through anchors and aliases.
    """
    source = loaded.source()
    places = Places(loaded.text, source.root, source.tokens)
    for need in needs:
        _Grant(places, loaded.workflow.section, need).write()
    try:
        result = load_text(places.edited(), filename=loaded.filename, actions=actions, directory=loaded.directory)
    except InvalidWorkflow as error:
        raise UsageError("the edited file would not be a valid workflow; nothing was written") from error
    if _without_privileges(result.workflow, needs) != _without_privileges(loaded.workflow, needs):
        raise UsageError("the edited file would say something else beside the privileges; nothing was written")
    for need in needs:
        if _declared(result, need, loaded) != need.found.wanted:
            raise UsageError(f"step `{need.step}`: the edited grant would not be what was inferred")
    return result


class _Grant:
    """The edits of one step's grant."""

    def __init__(self, places: Places, section: str, need: StepNeeds) -> None:
        self._places = places
        self._need = need
        steps = places.value(places.root, section, need.step)
        self._step = places.value(steps, need.step, need.step)

    def write(self) -> None:
        if self._need.added:
            self._add_grant()
            return
        grants = self._value(self._step, "grants")
        grant = self._value(grants, self._need.grant)
        if self._need.role is not None:
            self._replace_role(grant)
        else:
            self._change(self._value(grant, "privileges"))

    def _value(self, mapping: Any, key: str) -> Any:
        return self._places.value(mapping, key, self._need.step)

    def _add_grant(self) -> None:
        need, places = self._need, self._places
        wanted = need.found.wanted
        head = [f"{need.grant}:", "  kind: database", f"  connection: {yaml_text.scalar(need.connection)}"]
        block = [*head, "  privileges:", *("    " + line for line in yaml_text.lines(wanted))]
        grant = {
            "kind": "database",
            "connection": need.connection,
            "privileges": [privilege.as_json() for privilege in wanted],
        }
        if places.has(self._step, "grants"):
            places.append_pair(self._value(self._step, "grants"), block, self._pair(need.grant, grant), need.step)
        else:
            nested = ["grants:", *("  " + line for line in block)]
            places.append_pair(self._step, nested, self._pair("grants", {need.grant: grant}), need.step, after="action")

    def _replace_role(self, grant: Any) -> None:
        wanted = self._need.found.wanted
        block = ["  " + line for line in yaml_text.lines(wanted)]
        inline = self._pair("privileges", [privilege.as_json() for privilege in wanted])
        self._places.replace_pair(grant, "role", "privileges", block, inline, self._need.step)

    def _pair(self, key: str, value: Any) -> str:
        return yaml_text.pair(key, value, as_json=self._places.is_json)

    def _inline(self, value: Any) -> str:
        return yaml_text.inline(value, as_json=self._places.is_json)

    def _change(self, sequence: Any) -> None:
        """Keep every line that is right; change columns in place, take out lines, add lines at the end."""
        declared = self._need.declared
        held = {privilege.key: privilege for privilege in merge(declared)}
        wanted = {privilege.key: privilege for privilege in self._need.found.wanted}
        kept: set[tuple[str, str, str]] = set()
        removed = []
        for index, privilege in enumerate(declared):
            want = wanted.get(privilege.key)
            if want is not None and want.columns == held[privilege.key].columns:
                continue
            if want is None or privilege.key in kept:
                removed.append(index)
                continue
            kept.add(privilege.key)
            if privilege.columns != want.columns:
                self._columns(self._places.item(sequence, index, self._need.step), privilege.columns, want.columns)
        new = [privilege for privilege in self._need.found.wanted if privilege.key not in held]
        lines = [(yaml_text.lines([each]), self._inline(each.as_json())) for each in new]
        self._places.change_items(sequence, removed, lines, self._need.step)

    def _columns(self, item: Any, before: Sequence[str], after: Sequence[str]) -> None:
        if ALL_COLUMNS in (tuple(before), tuple(after)):
            columns = "all" if tuple(after) == ALL_COLUMNS else list(after)
            self._places.replace_value(item, "columns", self._inline(columns), self._need.step)
            return
        sequence = self._value(item, "columns")
        names = [node.value for node in sequence.value]
        removed = [index for index, name in enumerate(names) if name not in after or name in names[:index]]
        added = [self._inline(column) for column in after if column not in names]
        self._places.change_items(sequence, removed, [([f"- {name}"], name) for name in added], self._need.step)


def _without_privileges(workflow: Workflow, needs: Sequence[StepNeeds]) -> dict[str, Any]:
    """Everything in the workflow but what is written."""
    content = workflow.model_dump()
    for need in needs:
        grants = content[workflow.section][need.step]["grants"]
        if need.added:
            grants.pop(need.grant, None)
        else:
            grants[need.grant] = {
                name: value for name, value in grants[need.grant].items() if name not in ("privileges", "role")
            }
    return content


def _declared(result: LoadedWorkflow, need: StepNeeds, before: LoadedWorkflow) -> tuple[Privilege, ...]:
    """What the result declares, with the names of functions as the catalog writes them."""

    def lines(loaded: LoadedWorkflow) -> list[Privilege]:
        grant = loaded.workflow.parts[need.step].grants.get(need.grant)
        return [each.privilege() for each in getattr(grant, "privileges", ())]

    canonical = dict(zip(lines(before), need.declared, strict=True))
    return merge(canonical.get(each, each) for each in lines(result))
