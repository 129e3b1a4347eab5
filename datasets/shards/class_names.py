"""Which class a label means, and how messages name classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from datasets.errors import DataError

_SHOWN = 6
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, of bytes that are none, and of breaks of lines."""


def class_numbers(classes: Sequence[str]) -> dict[str, int]:
    """Return the number of each label: a class's name or, where no name is a number, its number."""
    by_name = {name: number for number, name in enumerate(classes)}
    if any(is_whole_number(name) for name in classes):  # `0` would be the class `1` where classes are 1 to 5
        return by_name
    return {str(number): number for number in range(len(classes))} | by_name


def is_one_line(name: str) -> bool:
    """Say whether a name of a class is one line of text without control characters."""
    return not any(unicodedata.category(character) in _NO_TEXT for character in name)


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse names of classes that are not one line of text each.

    Raises:
        DataError: such a name; begins with `where`.
    """
    for name in names:
        if not is_one_line(name):
            raise DataError(f"{where}: the class name {name!r} is not one line without control characters; rename it")


def sorted_names(found: Iterable[str]) -> tuple[str, ...]:
    """Return labels in order of their names, or of their numbers where all are whole numbers."""
    names = {*found}
    numeric = all(is_whole_number(name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name)) if numeric else sorted(names))


def shown_classes(classes: Sequence[str]) -> str:
    """Return the first class names for a message."""
    return ", ".join(classes[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")


def is_whole_number(name: str) -> bool:
    """Say whether a class is named by a number."""
    return name.removeprefix("-").isdecimal()
