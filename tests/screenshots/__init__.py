"""Pictures of the status page, made from a mirror that really runs: ``make screenshots``."""
