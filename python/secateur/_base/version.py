"""Which version of the package is installed."""

from __future__ import annotations


def installed_version() -> str:
    """What the package's metadata says: pyproject.toml is the one place where the version is written.

    ``"unknown"`` where the package is used from a source tree that is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version  # here, so that `import secateur` does not wait for it

    try:
        return version("secateur")
    except PackageNotFoundError:
        return "unknown"
