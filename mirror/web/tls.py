"""The mirror's own certificate, read again when its files change."""

import logging
import ssl
from pathlib import Path

_log = logging.getLogger(__name__)


class Certificate:
    """A certificate chain and its key, as files that somebody else renews."""

    def __init__(self, chain: Path, key: Path) -> None:
        """Read the files.

        Raises:
            OSError: they cannot be read, or do not belong together (``ssl.SSLError`` is one).
        """
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.set_alpn_protocols(["http/1.1"])
        self._files = (chain, key)
        self._read = self._changed()
        self.context.load_cert_chain(chain, key)

    def reload(self) -> None:
        """Use the files as they are now for connections to come; a mistake leaves all as it was."""
        chain, key = self._files
        try:
            changed = self._changed()
            if changed == self._read:
                return
            # Try it on the side: a context is left half changed by a key that does not fit.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key)
            self.context.load_cert_chain(chain, key)
        except OSError as error:
            _log.error("%s: %s; the former certificate stays", chain, error)
        else:
            self._read = changed
            _log.info("%s: read again", chain)

    def use(self, chain: Path, key: Path) -> None:
        """Use other files for connections to come.

        Raises:
            OSError: as for the first ones; then the former stay.
        """
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key)
        self._files = (chain, key)
        self._read = self._changed()
        self.context.load_cert_chain(chain, key)

    def _changed(self) -> tuple[int, ...]:
        return tuple(file.stat().st_mtime_ns for file in self._files)
