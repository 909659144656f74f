"""Files of models: one in the safetensors container, pruned weights as an index and the kept values. No pickle.

FORMAT.md, at the top of the repository, is the specification. The modules: ``saving`` and ``loading`` are the two
calls; ``encode`` and ``decode`` one tensor's parts; ``description`` the metadata; ``container``, ``digest`` and
``atomic`` the file itself; ``stored`` and ``content`` check what a file says; ``filling`` puts it into a model, all of
it or nothing; ``rules`` are those of scales and thresholds; ``names`` leaves out those of wrappers; ``ordinary`` tells
which tensors are none; ``foreign`` reads other libraries' checkpoints.
"""

from .content import read, to_dense_state_dict
from .foreign import import_checkpoint
from .format.description import FORMAT, VERSION
from .loading import load
from .saving import save

__all__ = ["FORMAT", "VERSION", "import_checkpoint", "load", "read", "save", "to_dense_state_dict"]
