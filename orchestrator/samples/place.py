"""Where the samples are that come with the program: `workflows/` with policies and data, and `vault/`.

In a checkout they are beside the package, where people look for them; a wheel carries them in this
folder (`force-include` in pyproject.toml). There is one source of them.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import UsageError


def samples() -> Path:
    """The folder that has `workflows` and `vault`. Raises UsageError where the program was installed without them."""
    package = Path(__file__).parent
    for folder in (package, package.parent.parent):
        if (folder / "vault" / "declarations.yaml").is_file() and (folder / "workflows" / "policies").is_dir():
            return folder
    raise UsageError(f"{package} was installed without the samples", hint="install the wheel of the project")


def runtime_policy() -> str:
    """The Vault policy that the runtime of this version needs (HCL), as `vault/policies` has it."""
    return (samples() / "vault" / "policies" / "orchestrator-runtime.hcl").read_text(encoding="utf-8")
