"""Random modules, written as people write them, through the calls that take a model, and held against the contract.

    PYTHONPATH=tests/fuzz python -m module_fuzzer --seconds 60      (`make fuzz-modules` runs it)

A module is Python source text (``writer``), so that a failing one can be shrunk to a script of a few lines
(``shrink``). What is held of it: ``contract``. What was written, refused and found: ``counter``.
"""
