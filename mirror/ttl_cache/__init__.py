"""In-memory state with expiry: freshness, grants, refusals, pages, tokens.  Knows no HTTP.

Any entry may be dropped at any time.
"""
