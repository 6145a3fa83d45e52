"""The blocks in force in this process, and the transfers that they break off."""

from collections.abc import Callable, Iterable

from mirror.oci.digest import Digest
from mirror.policy.blocks import Block, Blocks


class BlockList:
    """The blocks in force, of the configuration and of commands; they outlive a configuration."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` after each change; it makes the mirror decide anew."""
        self.current = Blocks()
        self.changes = 0
        self.changed = changed
        self._configured: tuple[Block, ...] = ()
        self._commanded: tuple[Block, ...] = ()
        self._broken_off: dict[Digest, int] = {}

    def configure(self, blocks: Iterable[Block]) -> None:
        """Use these blocks of the configuration."""
        self._put(tuple(blocks), self._commanded)

    def command(self, blocks: Iterable[Block]) -> None:
        """Use these blocks of commands."""
        self._put(self._configured, tuple(blocks))

    def _put(self, configured: tuple[Block, ...], commanded: tuple[Block, ...]) -> None:
        former = frozenset(self.current.all)
        self._configured, self._commanded = configured, commanded
        blocks = Blocks.of((*configured, *commanded))
        if blocks.all == self.current.all:
            return
        self.current = blocks
        self.changes += 1
        layers = {layer for block in blocks.all if block not in former for layer in block.layers}
        in_force = {layer for block in blocks.all for layer in block.layers}
        kept = {layer: at for layer, at in self._broken_off.items() if layer in in_force}
        self._broken_off = kept | dict.fromkeys(layers, self.changes)
        self.changed()

    def is_broken_off(self, digest: Digest, begun: int) -> bool:
        """Whether a block breaks off a transfer that began when ``changes`` was ``begun``."""
        return self._broken_off.get(digest, 0) > begun
