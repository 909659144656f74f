"""The one exception for mistakes of the caller."""

from __future__ import annotations


class Error(ValueError):
    """Raised for every error that is the caller's, whatever the function.

    The message names the function or operator, the argument, the rule and the offending value, for example
    ``mask_apply: mask must be uint8, got float32``. A file that cannot be opened stays an :class:`OSError`.
    """
