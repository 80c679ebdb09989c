"""What was left out of the sources, or taken in a way that their giver should know of: how often, and where first."""

from __future__ import annotations

from collections.abc import Mapping

_SENTENCES = {
    "no file": ("1 entry of a folder is", "{} entries of folders are", "no file (a pipe, a device, a link to nothing)"),
    "binary": ("1 file is", "{} files are", "not text"),
    "wide": ("1 file is", "{} files are", "in UTF-16 or UTF-32, not in UTF-8"),
    "other encoding": ("1 file is", "{} files are", "not in UTF-8"),
    "invalid": ("1 record has", "{} records have", "no text"),
}
_TAKEN = ("other encoding",)


class Notes:
    """Counts by kind, each with the place of its first."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, where: str, count: int = 1) -> None:
        """Count one more, at a place that counts as the first if there was none."""
        before, first = self.found.get(kind, (0, where))
        self.found[kind] = (before + count, first)

    def update(self, others: Mapping[str, tuple[int, str]]) -> None:
        """Add the counts of what comes after."""
        for kind, (count, first) in others.items():
            self.add(kind, first, count)

    def sentences(self) -> list[str]:
        """One a kind."""
        said = []
        for kind, (one, several, what) in _SENTENCES.items():
            if kind in self.found:
                count, first = self.found[kind]
                becomes = "taken byte for byte" if kind in _TAKEN else "left out"
                which = "the first" if count > 1 else "namely"
                said.append(
                    f"{(one if count == 1 else several).format(f'{count:,}')} {what}: {becomes} ({which} {first})"
                )
        return said
