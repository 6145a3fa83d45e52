"""Totals over restarts: what was served, pulled and saved, in a small database."""
