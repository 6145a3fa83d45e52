"""Which images may leave the mirror: decisions over plain values, without I/O."""
