"""The OCI distribution protocol as values.

Knows the grammar of names, digests, request lines, header fields and manifests.  Must not know
sockets, files, clocks or the event loop: every function is pure and uses only the standard library.
"""
