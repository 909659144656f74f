"""The graph front: a model is traced, its operations recognised, fused, put into segments and run by the engine.

tracing -> memory -> recognise (layers, elementwise, movement) -> partition -> fuse -> segment -> assemble -> unit ->
compiled. Each step is a file, and the ones before it know nothing of it.
"""

from .compiled import CompiledModel, compile
from .profiling import profile

__all__ = ["CompiledModel", "compile", "profile"]
