"""Shared helpers. They import no other part of the package."""
