"""One file is one experiment; `base.py` holds every default."""
