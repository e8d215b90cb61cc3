"""Text of others as a terminal may be given it; knows nothing about who wrote it.

A terminal obeys what it reads: a row, a name or an error from elsewhere could clear it, name its window, type into it or hide what stands
there.
"""

from __future__ import annotations

import re

# All controls but line feed and tab (C0, DEL, C1), the marks that turn the direction of what follows, and the two line ends of Unicode.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def printable(text: str) -> str:
    r"""The text with its controls written out, `\x1b` for one."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text.replace("\r\n", "\n"))
