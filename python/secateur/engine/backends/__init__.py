"""The backends that run a program: the engine in C++, or the reference in plain torch."""
