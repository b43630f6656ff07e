"""The command `medsign-lite`: keys, detection in files of every kind, and provenance."""
