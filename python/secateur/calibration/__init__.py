"""What a model makes of a caller's batches: its calls, each layer's inputs in turn, normalization statistics anew.

The caller's model is never run. A copy of it is, in evaluation mode, and leaves no trace.
"""
