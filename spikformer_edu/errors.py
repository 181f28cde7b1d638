"""The error that users see: a single line that names the cause and the remedy."""

import difflib
import re
from collections.abc import Iterable


class SpikformerError(ValueError):
    """Bad input, said in one line; the commands print it and exit with code 2."""


def nearest(name: object, options: Iterable[str]) -> str:
    """The end of an error line: the nearest of ``options``, then up to twenty of them."""
    options = [str(option) for option in options]
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    shown = options if len(options) <= 20 else [*options[:20], "..."]
    return f"{hint}available: {', '.join(shown)}"


def printable(text: object) -> str:
    """Text from outside, on one line that can be encoded: characters that cannot be shown become escapes.

    These are line breaks, other control characters, and bytes of file names that are not UTF-8 (lone surrogates).
    """
    hidden = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
    return re.sub(hidden, lambda found: found[0].encode("unicode_escape").decode(), str(text))
