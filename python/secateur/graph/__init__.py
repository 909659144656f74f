"""From a module to the graph of its operations: tracing, aliasing, torch's names for operations."""
