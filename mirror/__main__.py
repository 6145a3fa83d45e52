"""``python -m mirror``."""

from mirror.cli.root import main

main()
