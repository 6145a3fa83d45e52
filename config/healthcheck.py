# noqa: INP001 - a program, copied into the image
"""The health check of the container: ask the mirror for /healthz, or for the path in argv.

It reads the port, and whether the mirror speaks TLS, where the mirror reads them: in the
environment and in mirror.toml.  Flags of ``mirror serve`` are not known here.
"""

import contextlib
import os
import ssl
import sys
import tomllib
import urllib.request
from pathlib import Path

server = {}
with contextlib.suppress(OSError, ValueError):  # no file: the defaults
    file = Path(os.environ.get("MIRROR_CONFIG") or "/etc/mirror/mirror.toml")
    server = tomllib.loads(file.read_text()).get("server", {})
listen = os.environ.get("MIRROR_SERVER__LISTEN") or server.get("listen", ":5000")
places = listen.split(",") if isinstance(listen, str) else listen
host, _, port = next(each for each in places if "/" not in each).strip().rpartition(":")
tls = os.environ.get("MIRROR_SERVER__TLS_CERTIFICATE") or server.get("tls_certificate")
path = sys.argv[1] if len(sys.argv) > 1 else "/healthz"

trusting = ssl.create_default_context()
trusting.check_hostname = False
trusting.verify_mode = ssl.CERT_NONE  # the certificate is for clients, not for localhost
# Past any proxy of the environment, which would look for itself at localhost.
way = urllib.request.build_opener(
    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting)
)
way.open(f"http{'s' if tls else ''}://{host or 'localhost'}:{port}{path}", timeout=4)
