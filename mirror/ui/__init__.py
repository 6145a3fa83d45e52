"""The status pages for browsers and terminals."""
