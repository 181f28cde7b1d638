"""Tables, built once: as plain text, Markdown and HTML."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import printable


@dataclass(frozen=True)
class Table:
    """Header and rows of a table, whose cells are text.

    Attributes:
        header: names of the columns.
        rows: cells, as text.
        align: for each column "l" (to the left, text) or "r" (to the right, numbers); the last letter goes for all that
            follow.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str = "lr"

    def _sides(self) -> str:
        return self.align.ljust(len(self.header), self.align[-1])[: len(self.header)]

    def __str__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        signs = [{"l": "<", "r": ">"}[side] for side in self._sides()]

        def text(line: Sequence[str]) -> str:
            return "  ".join(f"{c:{sign}{width}}" for c, sign, width in zip(line, signs, widths, strict=True)).rstrip()

        return "\n".join(map(text, lines))

    def markdown(self) -> str:
        """For the pages of the site."""
        rule = [{"l": "---", "r": "---:"}[side] for side in self._sides()]
        return "\n".join("| " + " | ".join(row) + " |" for row in (self.header, rule, *self.rows))

    def html(self, label: str) -> str:
        """A table that scrolls by itself; rows called "total" stand out.

        Args:
            label: what a screen reader says.
        """
        kinds = [' class="text"' if side == "l" else "" for side in self._sides()]

        def cells(line: Sequence[str], tag: str) -> str:
            return "".join(f"<{tag}{kind}>{escape(c)}</{tag}>" for c, kind in zip(line, kinds, strict=True))

        body = "".join(f"<tr{' class=total' if row[0] == 'total' else ''}>{cells(row, 'td')}</tr>" for row in self.rows)
        return (
            f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
            f"<thead><tr>{cells(self.header, 'th')}</tr></thead><tbody>{body}</tbody></table></div>"
        )


def escape(text: str) -> str:
    """Text in a page, whatever the names of classes and folders hold."""
    return html.escape(printable(text))
