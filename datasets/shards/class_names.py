"""Which class a label means, and how messages name classes."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 6


def class_numbers(classes: Sequence[str]) -> dict[str, int]:
    """Return the number of each label: a class's name or, where no name is a number, its number."""
    by_name = {name: number for number, name in enumerate(classes)}
    if any(is_whole_number(name) for name in classes):  # `0` would be the class `1` where classes are 1 to 5
        return by_name
    return {str(number): number for number in range(len(classes))} | by_name


def shown_classes(classes: Sequence[str]) -> str:
    """Return the first class names for a message."""
    return ", ".join(classes[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")


def is_whole_number(name: str) -> bool:
    """Say whether a class is named by a number."""
    return name.removeprefix("-").isdecimal()
