"""Gates: what the shipped weights must reach, measured, recorded and compared again."""
