"""The file format: containers, symbols, tensors. Knows no models."""
