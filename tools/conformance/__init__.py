"""Runs the conformance tests of the OCI distribution spec against a mirror of distribution."""
