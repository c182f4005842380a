"""Types of command-line arguments that argparse lacks: it names the argument and the value."""

from argparse import ArgumentTypeError


def positive_int(text: str) -> int:
    """A whole number from 1 on."""
    value = _number(text, int)
    if value < 1:
        raise ArgumentTypeError(f"expected 1 or more, got {text}")
    return int(value)


def non_negative_int(text: str) -> int:
    """A whole number from 0 on."""
    value = _number(text, int)
    if value < 0:
        raise ArgumentTypeError(f"expected 0 or more, got {text}")
    return int(value)


def positive_float(text: str) -> float:
    """A finite number above 0."""
    value = _number(text, float)
    if not 0.0 < value < float("inf"):
        raise ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def _number(text: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise ArgumentTypeError(f"expected {expected}, got {text!r}") from None
