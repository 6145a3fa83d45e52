"""Durable, digest-verified bytes on a local disk.  Knows no HTTP and no upstream."""
