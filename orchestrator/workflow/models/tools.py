"""A tool and the limits of a task, as data."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any

from pydantic import AliasChoices, Field, model_validator

from orchestrator.grants.fields import Duration, Name
from orchestrator.grants.models import Grant
from orchestrator.workflow.models.declared import Argument, Part
from orchestrator.workflow.models.steps import Retry, Step, StepId

HAND_OVER = "hand_over"
"""The action of a tool that gives its credential to the agent. No file names it: the key `hand_over` does."""

_OF_ACTIONS = frozenset({"with_", "outputs", "retry"})

_RENEWABLE = frozenset({"database", "dynamic"})
"""Kinds of grants whose credential is a lease of Vault's."""


class TaskLimits(Part):
    """How long an agent may go on with a task."""

    duration: Duration = Field(default=900, description="When it ends in any case, counted from its opening.")
    idle: Duration | None = Field(default=None, description="It ends when nothing was called for so long.")


class Tool(Part):
    """What an agent may do while a task is open: an action that is carried out for it, or a credential of its own."""

    description: Annotated[str, Field(min_length=1, max_length=2000)] = Field(
        description="What it does and when to use it, for the agent, which reads it."
    )
    call: dict[StepId, Argument] = Field(
        default_factory=dict, description="What the agent chooses when it calls the tool; it may choose nothing else."
    )
    grants: dict[Name, Grant] = Field(default_factory=dict, description="The credentials that a call needs, by name.")
    action: str | None = Field(
        default=None,
        description="What is done for the agent, which sees its output and never a credential; such as "
        "`postgres.query`.",
    )
    with_: dict[str, Any] = Field(
        default_factory=dict,
        validation_alias=AliasChoices("with"),
        serialization_alias="with",
        description="Parameters of the action; may contain `${{ }}` expressions.",
    )
    outputs: list[str] = Field(
        default_factory=list, description="Keys of the output that the agent sees; only these are kept."
    )
    hand_over: Name | None = Field(
        default=None, description="Instead of `action`: the grant whose credential the agent gets, for its `ttl`."
    )
    timeout: Duration = Field(
        default=60,
        description="How long one call of the action may take; of `hand_over`, how long the agent may have the "
        "credential if it renews it, by default never.",
    )
    retry: Retry | None = Field(default=None, description="When the action is tried again within one call.")
    max_calls: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Calls within one task.")
    max_open: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Calls of one task that may be under way, or hold a credential, at the same time."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Tool:
        if (self.action is None) == (self.hand_over is None):
            raise ValueError("a tool has either an `action` or a grant to `hand_over`")
        if self.hand_over is None:
            return self
        if given := sorted(name.rstrip("_") for name in _OF_ACTIONS & self.model_fields_set):
            raise ValueError(f"these belong to `action`, not to `hand_over`: `{'`, `'.join(given)}`")
        grant = self.grants.get(self.hand_over)
        if grant is None:
            raise ValueError(f"there is no grant `{self.hand_over}` to hand over")
        if grant.ttl is None:
            raise ValueError(f"the grant `{self.hand_over}` needs a `ttl`: the agent has the credential for so long")
        if len(self.grants) > 1:
            raise ValueError("a tool that hands a credential over has that one grant only")
        if "timeout" in self.model_fields_set:
            self._check_renewable(grant, grant.ttl)
        return self

    def _check_renewable(self, grant: Grant, ttl: int) -> None:
        if grant.kind not in _RENEWABLE:
            raise ValueError(
                f"a credential of the kind `{grant.kind}` cannot be renewed: leave `timeout` out, and let the agent "
                "call again"
            )
        if self.timeout <= ttl:
            raise ValueError(f"with a `timeout` of {self.timeout}s nothing is left to renew after the `ttl` of {ttl}s")

    @property
    def renewable(self) -> bool:
        """Whether the agent may have the credential that it was handed for longer than its `ttl`."""
        return self.hand_over is not None and "timeout" in self.model_fields_set

    @cached_property
    def step(self) -> Step:
        """The one step that a call of it is."""
        if self.hand_over is None:
            assert self.action is not None
            return Step.model_validate(
                {
                    "action": self.action,
                    "description": self.description,
                    "with": self.with_,
                    "grants": self.grants,
                    "timeout": self.timeout,
                    "retry": self.retry,
                    "on_crash": "fail",
                    "outputs": self.outputs,
                }
            )
        return Step.model_validate(
            {
                "action": HAND_OVER,
                "description": self.description,
                "with": {"grant": self.hand_over},
                "grants": self.grants,
                "timeout": self.timeout if self.renewable else self.grants[self.hand_over].ttl,
                "on_crash": "fail",
            }
        )
