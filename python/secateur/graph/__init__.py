"""From a module to the graph of its operations: tracing, aliasing, what torch calls things."""
