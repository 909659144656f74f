"""``finetune``: a student trained, judged on what it was not trained on, and left with the best weights met.

``sources`` gives the batches and holds a part out, ``goal`` is what is minimised, ``judge`` what chooses, ``step`` one
step, ``loop`` all of them; ``checkpoints`` lets a run go on, ``ranks`` is for several processes.
"""

from .finetune import finetune
from .report import FinetuneReport

__all__ = ["FinetuneReport", "finetune"]
