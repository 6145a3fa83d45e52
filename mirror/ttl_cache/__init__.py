"""What may vanish at any moment: freshness, negative answers, tokens.  Knows no HTTP."""
