"""The front end: a model is traced, its operations recognised, cut into segments, fused, and run by the engine.

tracing -> value_order (both in graph/) -> recognise (layers, elementwise, movement) -> partition -> fuse -> segment ->
assemble -> unit -> compiled. Each stage imports only earlier stages.
"""

from .compiled import CompiledModel, compile
from .profiling import profile

__all__ = ["CompiledModel", "compile", "profile"]
