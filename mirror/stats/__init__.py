"""Usage statistics that survive restarts, in a small database: requests, pulls, saved bytes."""
