"""HTTP handlers: the registry API, health checks and the operator's commands."""
