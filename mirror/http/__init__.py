"""The HTTP server: connections, limits, access checks, responses."""
