"""Which files the import of a module runs, and that import held to them. Stand-alone: only the standard library.

The orchestrator finds them (nothing of an author is imported there) and shows them to the policy; the process of the
step finds them again with the paths that it has itself, and runs exactly the bytes that were hashed. Of what these
modules import in turn nothing is known.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    BuiltinImporter,
    ExtensionFileLoader,
    FileFinder,
    FrozenImporter,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import spec_from_file_location
from types import CodeType
from typing import Any

BUILT_IN = "built-in"
_KINDS = (
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (SourceFileLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)
"""In the order of the interpreter's own."""


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """A module that an import runs: its file (absolute, without links) or `built-in`, and the content's SHA-256."""

    name: str
    file: str
    sha256: str
    package: bool = False


def find_modules(name: str, path: Sequence[str]) -> list[ModuleFile]:
    """What the import of a dotted name runs, in order: its packages, then the module itself.

    Modules are looked for in `path`, then where this interpreter does. Raises ImportError where there is none, or
    where it is not a plain file, and OSError where that cannot be read.
    """
    for folder in path:
        if not os.path.isdir(folder):
            raise ImportError(f"{folder} is not a folder")
    found: list[ModuleFile] = []
    locations: Sequence[str] | None = None
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        full = ".".join(parts[:length])
        if length == 1 and full in sys.builtin_module_names:
            found.append(ModuleFile(full, BUILT_IN, ""))
            locations = []
            continue
        spec = _spec(full, path, locations)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {full!r}", name=full)
        inner = spec.submodule_search_locations
        locations = [] if inner is None else list(inner)
        if spec.origin is not None and spec.has_location:
            found.append(_module_file(full, spec.origin, package=inner is not None))
        elif inner is None or length == len(parts):
            raise ImportError(f"the module {full!r} is not a file")
    return found


def _spec(name: str, path: Sequence[str], locations: Sequence[str] | None) -> ModuleSpec | None:
    if locations is not None:
        return _in_folders(name, locations)
    spec = _in_folders(name, [*path, *(folder for folder in sys.path if os.path.isabs(folder))])
    for finder in () if spec is not None else sys.meta_path:  # such as those of editable installs
        if finder not in (BuiltinImporter, FrozenImporter, PathFinder) and not isinstance(finder, _Held):
            spec = spec or finder.find_spec(name, None)
    return spec


def _in_folders(name: str, folders: Sequence[str]) -> ModuleSpec | None:
    """What PathFinder finds in folders, without its caches, and without having imported the packages around."""
    portions: list[str] = []
    for folder in folders:
        spec = FileFinder(folder, *_KINDS).find_spec(name) if os.path.isdir(folder) else None
        if spec is not None and spec.loader is not None:
            return spec
        portions += (spec.submodule_search_locations or ()) if spec is not None else ()
    if not portions:
        return None
    namespace = ModuleSpec(name, None, is_package=True)
    namespace.submodule_search_locations = portions
    return namespace


def _module_file(name: str, origin: str, *, package: bool) -> ModuleFile:
    file = os.path.realpath(origin)
    if not os.path.isfile(file):
        raise ImportError(f"the module {name!r} is not a plain file ({origin})")
    with open(file, "rb") as content:
        return ModuleFile(name, file, hashlib.file_digest(content, "sha256").hexdigest(), package)


def hold_imports(name: str, path: Sequence[str], shown: Sequence[ModuleFile]) -> None:
    """From now on the import of this name runs what was shown, byte for byte, or fails.

    Raises ImportError where this process would import something else.
    """
    if find_modules(name, path) != list(shown):
        raise ImportError(f"the module {name!r} is not what the policy decided about: it was changed meanwhile")
    for module in shown:
        if (loaded := sys.modules.get(module.name)) is not None:
            origin = getattr(loaded, "__file__", None)
            if (os.path.realpath(origin) if origin else BUILT_IN) != module.file:
                raise ImportError(f"{module.file} has the name of a module that is loaded already: {module.name!r}")
    sys.meta_path.insert(0, _Held({module.name: module for module in shown if module.file != BUILT_IN}))


class _Held:
    """Finds the modules that were shown, and no others."""

    def __init__(self, modules: dict[str, ModuleFile]) -> None:
        self._modules = modules

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """Called by every import, before the interpreter's own finders."""
        if (module := self._modules.get(name)) is None:
            return None
        kind: Any = _HeldSource
        if module.file.endswith(tuple(EXTENSION_SUFFIXES)):
            kind = _HeldExtension
        elif module.file.endswith(".pyc"):
            kind = _HeldBytecode
        loader = kind(name, module.file)
        loader.sha256 = module.sha256
        inner = [os.path.dirname(module.file)] if module.package else None
        return spec_from_file_location(name, module.file, loader=loader, submodule_search_locations=inner)


def _checked(data: bytes, path: str, sha256: str) -> bytes:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ImportError(f"{path} is not what the policy decided about: it was changed meanwhile")
    return data


class _HeldSource(SourceFileLoader):
    """Compiles the bytes that were shown; a cached compilation beside them was shown to nobody."""

    sha256: str

    def get_code(self, fullname: str) -> CodeType | None:
        """The code of the module."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(_checked(self.get_data(path), path, self.sha256), path)
        return code


class _HeldBytecode(SourcelessFileLoader):
    """Runs the compilation that was shown."""

    sha256: str

    def get_data(self, path: str) -> bytes:
        """The content of the file."""
        return _checked(super().get_data(path), path, self.sha256)


class _HeldExtension(ExtensionFileLoader):
    """Loads a shared library right after a look at its content; the linker reads the file once more."""

    sha256: str

    def create_module(self, spec: ModuleSpec) -> Any:
        """The module, not yet executed."""
        _checked(self.get_data(self.path), self.path, self.sha256)
        return super().create_module(spec)
