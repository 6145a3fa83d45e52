"""What an error of ``obstore`` says, in one line.

Its text has the request, the body of the answer, and all fields of the errors below it.
"""

import re
from typing import Final
from urllib.parse import urlsplit

_REQUEST: Final = re.compile(r"Error performing [A-Z]+ (\S+) in \S+ - ")
_STATUS: Final = re.compile(r"Server returned non-2xx status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<\n]+)")
_CERTIFICATE: Final = re.compile(r"InvalidCertificate\(\s*(\w+)")
_DEEPEST: Final = re.compile(r'(?:message|error): "([^"\n]+)"')
_STORE: Final = re.compile(r"Generic \w+ error: ")
_DEBUG: Final = "\n\nDebug source:"
#: Where a machine or a container in a cloud asks for the credentials of its role.
_ROLES: Final = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "metadata.google.internal")
#: The codes of S3 and of Azure, and what GCS says, for a bucket that does not exist.
_NO_BUCKET: Final = re.compile(
    r"<Code>(?:NoSuchBucket|ContainerNotFound)</Code>|bucket does not exist"
)
#: What obstore says of settings, and what to say instead.
_SETTINGS: Final = {
    "Account must be specified": (
        "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY unless the machine has a "
        "role"
    ),
    "No certificates found in `root_certificate`": "ca_file holds no certificate",
}


def cause(error: Exception) -> str:
    """Return where a request failed and why, without the name of the bucket."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    said, _, debug = str(error).partition(_DEBUG)
    requests = list(_REQUEST.finditer(said))
    if not requests:
        text = _STORE.sub("", said.partition("\n")[0]).strip() or type(error).__name__
        text = next((told for key, told in _SETTINGS.items() if text.startswith(key)), text)
    else:
        url = urlsplit(requests[-1][1])
        origin = f"{url.scheme}://{url.netloc}"
        role = ", which has those of a machine's role," if url.hostname in _ROLES else ""
        text = f"{origin}{role} {_reason(said[requests[-1].end() :], debug)}"
        text = f"no credentials: none are configured, and {text}" if role else text
    return text if text.isprintable() else ascii(text)  # it may quote a server


def lacks_bucket(error: Exception) -> bool:
    """Whether not the object is missing, but the whole bucket."""
    return _NO_BUCKET.search(str(error)) is not None


def _reason(answer: str, debug: str) -> str:
    status = _STATUS.match(answer)
    if status is not None:
        code, message = _CODE.search(answer), _MESSAGE.search(answer)
        words = [f"answers {status[1]}"]
        words += [code[1]] if code else []
        words += [f"({message[1].strip().rstrip('.')})"] if message else []
        return " ".join(words)
    if (certificate := _CERTIFICATE.search(debug)) is not None:
        return f"has a certificate that is not trusted ({certificate[1]}): ca_file adds a CA"
    if "InvalidMessage(" in debug:
        return "does not speak TLS"
    deepest = _DEEPEST.findall(debug)
    return f"cannot be reached ({deepest[-1]})" if deepest else "cannot be reached"
