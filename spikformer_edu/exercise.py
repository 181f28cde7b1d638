"""The check of an exercise: says what is still wrong instead of stopping the notebook."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def exercise(name: str) -> Iterator[None]:
    """Check an answer: print in one line what the first failing assertion says is missing, or "right".

    Args:
        name: number of the exercise, chapter first.

    Examples:
        >>> import spikformer_edu as se
        >>> with se.exercise("5.1"):
        ...     assert 1 + 1 == 3, "one and one is less than 3"
        Exercise 5.1: not yet - one and one is less than 3
        >>> with se.exercise("5.1"):
        ...     assert 1 + 1 == 2
        Exercise 5.1: right
    """
    try:
        yield
    except Exception as error:  # a half-written answer may raise anything
        reason = str(error).strip().split("\n")[0]
        if not isinstance(error, AssertionError):
            reason = f"{type(error).__name__}: {reason}"
        print(f"Exercise {name}: not yet - {reason}")
    else:
        print(f"Exercise {name}: right")
