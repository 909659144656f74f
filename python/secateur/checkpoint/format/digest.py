"""The digest of a file: the first 16 hexadecimal digits of a SHA-256, which tell damage from what was written.

It stands in the metadata, as ``digest``, and covers everything else that the file says: the metadata, and each tensor's
name, dtype, shape and bytes. Where the bytes lie is left out: a tool that lays the same tensors out in another order
does no harm, and one that gives a tensor the bytes of another is noticed. It guards against accidents, not against
forgers, who can compute one too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping

DIGEST = "digest"
_DIGITS = 16

#: What stands in a header until the digest is known.
BLANK = "0" * _DIGITS

_STEP = 2**20  # bytes at a time


class Digest:
    """The digest of one file, from the SHA-256 of each tensor."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._said: dict[str, object] = {
            "__metadata__": {name: value for name, value in metadata.items() if name != DIGEST}
        }

    def add(
        self, name: str, dtype: str, shape: Iterable[int], pieces: Iterable[bytes | bytearray | memoryview]
    ) -> None:
        """One tensor, its dtype in the container's words."""
        found = hashlib.sha256(usedforsecurity=False)
        for piece in pieces:
            found.update(piece)
        self._said[name] = [dtype, list(shape), found.hexdigest()]

    def passing(
        self, name: str, dtype: str, shape: Iterable[int], pieces: Iterable[bytes | memoryview]
    ) -> Iterator[bytes]:
        """One tensor on its way to a file.

        What comes out are copies: what is hashed is what is written, whoever changes the tensor meanwhile.
        """
        found = hashlib.sha256(usedforsecurity=False)
        for piece in pieces:
            view = memoryview(piece)
            for first in range(0, len(view), _STEP):
                step = bytes(view[first : first + _STEP])
                found.update(step)
                yield step
        self._said[name] = [dtype, list(shape), found.hexdigest()]

    @property
    def digits(self) -> str:
        """Of all tensors, once they were there: they are taken in the order of their names."""
        text = json.dumps(self._said, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii"), usedforsecurity=False).hexdigest()[:_DIGITS]
