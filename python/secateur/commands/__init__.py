"""The command line: ``secateur demo | bench | report``."""
