"""Several processes on one port and one cache directory."""
