"""``make bench``: the mirror beside its peers, in one run."""
