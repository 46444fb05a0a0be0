"""What setuptools asks when a wheel or an sdist is built: embedded data sets and weights go along.

In a checkout they lie in data/, their only place, also for an editable installation. A wheel has no
such folder beside the package, so it holds copies in potkit/datasets/embedded. Named in
pyproject.toml; imports nothing of potkit, because what potkit needs is not there while it is built.
"""

from __future__ import annotations

from pathlib import Path

from setuptools.command.build_py import build_py

SOURCE = Path("data")
TARGET = Path("potkit/datasets/embedded")
# sets and their sheets, pretrained weights and their cards; data/results stay in the repository
PATTERNS = ("*.h5", "*.md", "weights/*.safetensors", "weights/*.json")


class BuildWithEmbeddedSets(build_py):
    """`build_py` that also copies sets and weights, except where the checkout itself is used."""

    def embedded(self) -> dict[Path, Path]:
        """Where each file is copied from, by where it goes to (both relative to the project)."""
        files = [file for pattern in PATTERNS for file in sorted(SOURCE.glob(pattern))]
        return {Path(self.build_lib) / TARGET / file.relative_to(SOURCE): file for file in files}

    def run(self) -> None:
        """Copy what setuptools copies, the embedded sets and the weights."""
        super().run()
        if self.editable_mode:
            return
        for target, source in self.embedded().items():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Everything that `run` writes."""
        copies = [] if self.editable_mode else [str(target) for target in self.embedded()]
        return [*super().get_outputs(include_bytecode), *copies]

    def get_source_files(self) -> list[str]:
        """What an sdist must hold, so that a wheel built from it is the same."""
        return [*super().get_source_files(), *(str(file) for file in self.embedded().values())]
