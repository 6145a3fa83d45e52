"""Quirks of registries that are known by name, as data.

Tolerance that every registry gets is in the code that needs it, not here.
"""

from typing import Final

#: Scopes in challenges that stand for no repository (ghcr.io, for ``/v2/``).
PLACEHOLDER_SCOPES: Final = frozenset({"repository:user/image:pull"})
