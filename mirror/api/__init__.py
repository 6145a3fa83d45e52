"""Translation between HTTP and `pull`: the registry API, health, the operator's commands."""
