"""What a model computes, as data in its file: so that the file alone is enough.

FORMAT.md says how it is written. The modules: ``kinds`` and ``words`` are the two closed tables, of modules and of
operations; ``skeleton``, ``watch`` and ``follow`` record what a forward does, without the model's noticing; ``writing``
makes the text of that; ``description`` reads and checks it; ``building`` makes modules of it; ``belongs`` compares it
with a float model. Nothing is imported, looked up or called because a file names it: a word that is in no table is an
error.
"""
