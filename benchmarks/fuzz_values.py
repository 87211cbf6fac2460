"""Numbers and texts that programs trip over."""

from __future__ import annotations

NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TEXTS = (
    "",
    "0",
    "-1",
    "1e999",
    "nan",
    "99999999999999999999",
    "\\",
    "\x00",
    "A" * 5000,
    "1\\2\\3",
    "\ud800",
    "é",
)
