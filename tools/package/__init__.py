"""Builds what users install: ``python -m tools.package`` makes the Debian package."""
