"""The report of `doctor`: facts by section, notes and problems."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import printable


@dataclass(slots=True)
class Report:
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Text by section and name."""
    problems: list[str] = field(default_factory=list)
    """Requirements that are not met, each with its remedy."""
    notes: list[str] = field(default_factory=list)
    """Facts that may be intended, or only cost time."""

    def add(self, section: str, name: str, value: object) -> None:
        self.facts.setdefault(section, {})[name] = printable(str(value))

    def problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(printable(text))

    def note(self, text: str) -> None:
        self.notes.append(printable(text))

    def document(self) -> dict[str, Any]:
        return {**self.facts, "problems": self.problems, "notes": self.notes}
