"""
Sizes and rates as people write them.
"""

from __future__ import annotations

__all__ = ["asRate", "asSize"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

#: The slowest rate that makes sense, bytes a second.
LEAST_BYTES_PER_SECOND = 1024


def asSize(text: str) -> int:
    """
    C{"64M"} to bytes.

    @param text: digits and one of K, M, G, T (powers of 1024) or nothing.
    @raise ValueError: for anything else; its text names the form.
    """
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not (number.isascii() and number.isdigit()) or unit not in _UNITS or len(number) > 15:
        raise ValueError(f"{text!r} is not a size; write bytes, or a number with K, M, G or T")
    return int(number) * _UNITS[unit]


def asRate(text: str) -> int:
    """
    C{"2M"} to bytes a second; 0 is no limit.

    @raise ValueError: for what is no size, or less than L{LEAST_BYTES_PER_SECOND}.
    """
    rate = asSize(text)
    if 0 < rate < LEAST_BYTES_PER_SECOND:
        raise ValueError(
            f"{text!r} is too slow; write 1K bytes a second or more, or 0 for no limit"
        )
    return rate
