"""Pulls images into a cache as a client of the mirror's own registry API."""
