"""The OCI distribution spec's own tests, against a mirror with distribution behind it."""
