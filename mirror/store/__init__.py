"""Durable, digest-verified content on a local disk.  Independent of HTTP and upstreams."""
