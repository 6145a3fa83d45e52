"""The HTTP face.  aiohttp.web lives only here."""
