"""The report of `doctor`: facts by section, notes and problems."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import printable


@dataclass(slots=True)
class Report:
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    """By section and name, as text."""
    problems: list[str] = field(default_factory=list)
    """What the service cannot do, or not as it was told to, each with what to do."""
    notes: list[str] = field(default_factory=list)
    """What may be meant so, or costs no more than time."""

    def add(self, section: str, name: str, value: object) -> None:
        self.facts.setdefault(section, {})[name] = printable(str(value))

    def problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(printable(text))

    def note(self, text: str) -> None:
        self.notes.append(printable(text))

    def document(self) -> dict[str, Any]:
        return {**self.facts, "problems": self.problems, "notes": self.notes}
