"""A layer's weights solved again from its inputs: which of them may go, and what the others become.

It knows matrices and no models. Glossary: G groups, R neurons (rows) of a group, F inputs of a neuron, H [G, F, F] the
mean of x x^T over a layer's inputs.
"""
