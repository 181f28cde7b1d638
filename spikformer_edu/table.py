"""Tables in plain text."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table with aligned columns.

    Args:
        header: names of the columns.
        rows: cells, one sequence a row.
        left: number of columns, from the first, that are aligned to the left; the others go to the right.
    """
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def cells(line: tuple[str, ...]) -> str:
        pairs = enumerate(zip(line, widths, strict=True))
        return "  ".join(f"{cell:<{w}}" if i < left else f"{cell:>{w}}" for i, (cell, w) in pairs)

    return "\n".join(cells(line).rstrip() for line in lines)
