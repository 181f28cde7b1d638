"""The version of the package, in its one place: pyproject.toml reads it here, and results name it."""

__version__ = "0.1.0"
