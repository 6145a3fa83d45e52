"""Local storage: objects, their index, and disk space."""
