"""The version of the pack, as in pyproject.toml."""

VERSION = "0.2.0"
