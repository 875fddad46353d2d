"""Texts of errors that several protocols share."""

from __future__ import annotations


def parameter_fault(name: str, message: str) -> str:
    """The text for a parameter that pydantic refuses with `message`."""
    return f"{name}: {message[0].lower()}{message[1:]}."
