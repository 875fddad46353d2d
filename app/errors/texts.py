"""Texts of errors, shortened and made safe for a line on a terminal."""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """`text` on one line, with an escape for each character that a terminal would act on: file names have any."""
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode() for each in text
    )


def first_line(error: BaseException, most_characters: int = 200) -> str:
    """The first line of a library's error, short enough for a log line; the class's name where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most_characters]


def clause_of(error: BaseException, most_characters: int = 200) -> str:
    """The same without its full stop, for use in a sentence."""
    return first_line(error, most_characters).rstrip(". ")
