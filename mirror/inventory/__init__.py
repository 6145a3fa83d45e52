"""Operations on a cache, for a running mirror and for commands: list, remove, verify."""
