"""The environments of the peers: one folder each, made by `potkit bench peers NAME`.

They lie in the user's cache, or in the folder that POTKIT_PEERS names. What an environment holds is
pinned in ``requirements/NAME.txt``. The last thing that making one does is to write down what is in
it: a folder without that record is not whole, is never used, and is made anew the next time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pooch
from filelock import FileLock, Timeout

from ....errors import ConfigError
from ....structures import outputs
from ....structures.storage import sweep

RECORD = "potkit-peer.json"
PART = f"{RECORD}.part"  # a record that is not finished
LOG = "pip.log"
REQUIREMENTS = Path(__file__).parent / "requirements"
CUDA = ("nvidia", "cuda", "cupy", "triton", "jax-cuda")  # how packages for GPUs begin
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where a peer's packages are: ``wanted`` of them by name, at the versions of
    ``requirements/NAME.txt``.
    """

    name: str
    wanted: tuple[str, ...]

    @property
    def requirements(self) -> Path:
        """The file with the version of every package."""
        return REQUIREMENTS / f"{self.name}.txt"

    @property
    def folder(self) -> Path:
        """Where it is, or would be."""
        root = os.environ.get("POTKIT_PEERS") or Path(pooch.os_cache("potkit")) / "peers"
        return Path(root).expanduser() / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        if os.name == "nt":
            return self.folder / "Scripts" / "python.exe"
        return self.folder / "bin" / "python"

    def fingerprint(self) -> str:
        """What decides whether an environment is the one that is asked for."""
        parts = [*self.wanted, self.requirements.read_text(encoding="utf-8")]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()

    def state(self) -> str:
        """``ready``, ``absent``, ``not whole`` (interrupted) or ``outdated`` (other versions)."""
        if not self.folder.is_dir():
            return "absent"
        try:
            record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
            fingerprint = record["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            return "not whole"
        if not self.python.exists():
            return "not whole"
        return "ready" if fingerprint == self.fingerprint() else "outdated"

    def make(self, cuda: bool = False, say: Callable[[str], None] = lambda text: None) -> Path:
        """Make the environment anew, and give its folder.

        Raises ConfigError where another process makes it, where pip does not get its packages, or
        where it would get some for GPUs and ``cuda`` does not allow them.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder.parent / f".{self.name}.lock", timeout=0):
                self._make(cuda, say)
        except Timeout:
            raise ConfigError(
                f"bench peers: {self.folder} is being made by another process"
            ) from None
        return self.folder

    def _clear(self) -> None:
        """An empty folder but for the beginning of a record, which says that it is potkit's.

        Raises ConfigError for one with something in it and neither that nor a record: what lies
        there is somebody's.
        """
        folder = self.folder
        if folder.is_symlink() or (folder.exists() and not _is_ours(folder)):
            raise ConfigError(
                f"bench peers: {folder} holds something that potkit did not make; "
                "move it, or name another folder in POTKIT_PEERS"
            )
        if folder.exists():
            old = outputs.temporary(folder)
            folder.rename(old)
            sweep(old)
        folder.mkdir()
        (folder / PART).touch()

    def _make(self, cuda: bool, say: Callable[[str], None]) -> None:
        self._clear()
        say(f"{self.name}: a virtual environment in {self.folder}")
        self._run([sys.executable, "-m", "venv", str(self.folder)], "the virtual environment")
        self._look_for_cuda(cuda)
        say(f"{self.name}: {', '.join(self.wanted)} and what they need (some minutes)")
        self._pip("install", "--quiet", *self._packages())
        report = json.loads(self._pip("list", "--format", "json"))
        versions = {package["name"].lower(): package["version"] for package in report}
        record = {"fingerprint": self.fingerprint(), "versions": versions}
        # the record comes last: until then the folder is not whole
        part = self.folder / PART
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(self.folder / RECORD)

    def _packages(self) -> list[str]:
        return [*self.wanted, "--constraint", str(self.requirements)]

    def _look_for_cuda(self, allowed: bool) -> None:
        """Raise ConfigError if pip would bring packages for GPUs, which take gigabytes."""
        if allowed:
            return
        report = self._pip("install", "--quiet", "--dry-run", "--report", "-", *self._packages())
        names = [item["metadata"]["name"].lower() for item in json.loads(report)["install"]]
        if found := [name for name in names if name.startswith(CUDA)]:
            raise ConfigError(
                f"bench peers: {self.name} would bring {len(found)} packages for GPUs "
                f"({found[0]}, …); let pip's settings name an index of CPU builds, "
                "or allow them by --cuda"
            )

    def _pip(self, *words: str) -> str:
        return self._run([str(self.python), *PIP, *words], f"pip {words[0]}")

    def _run(self, command: Sequence[str], what: str) -> str:
        """What a command prints; ConfigError with its last words where it fails. All it says about
        failing is kept beside the environment.
        """
        done = subprocess.run(command, capture_output=True, text=True, env=bare_environment())
        if done.returncode:
            log = self.folder / LOG
            if self.folder.is_dir():
                log.write_text(done.stdout + done.stderr, encoding="utf-8")
            raise ConfigError(
                f"bench peers: {self.name}: {what} ended with {done.returncode}: "
                f"{last_words(done.stderr or done.stdout)} (all of it: {log})"
            )
        return done.stdout


def _is_ours(folder: Path) -> bool:
    """Whether a folder is empty, or has a record of potkit's, finished or not."""
    if not folder.is_dir():
        return False
    names = os.listdir(folder)
    return not names or RECORD in names or PART in names


def bare_environment(**more: str) -> dict[str, str]:
    """This process's environment variables without those that bring its own packages along."""
    ours = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"PYTHONNOUSERSITE": "1"} | more


def last_words(text: str, most: int = 200) -> str:
    """The last line of what a process said that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return ([*lines[-1:], *errors] or ["no message"])[-1][:most]
