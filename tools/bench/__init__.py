"""``make bench``: compares the mirror with its peers, in one run."""
