"""Quirks of registries that are known by name, as data.

Tolerance that every registry gets is in the code that needs it, not here.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

#: Scopes in challenges that stand for no repository (ghcr.io, for ``/v2/``).
PLACEHOLDER_SCOPES: Final = frozenset({"repository:user/image:pull"})


@dataclass(frozen=True, slots=True)
class Quirks:
    """What is special about the registries of one family.

    ``names`` are globs of names or hosts, without a port.  ``blob_head``: HEAD of a blob is
    answered; if not, the first byte is asked for at once.  ``login_hint``: what to know about a
    refused login.  ``bare_tokens``: the token service gives a token without a scope to each
    right login; if not, it cannot be asked whether a refusal is about the login.
    """

    names: tuple[str, ...] = ()
    blob_head: bool = True
    login_hint: str = ""
    bare_tokens: bool = True


FAMILIES: Final = (
    Quirks(("public.ecr.aws",), blob_head=False),
    Quirks(
        (
            *("*.dkr.ecr.*.amazonaws.com", "*.dkr.ecr.*.amazonaws.com.cn"),
            *("*.dkr.ecr-fips.*.amazonaws.com", "*.dkr-ecr.*.on.aws", "*.dkr-ecr-fips.*.on.aws"),
        ),
        login_hint="passwords of ECR last 12 hours: for the user AWS, use the output of "
        "`aws ecr get-login-password`",
    ),
    Quirks(
        ("gcr.io", "*.gcr.io", "*.pkg.dev"),
        login_hint="access tokens of Google last an hour, for the user oauth2accesstoken; the key "
        "of a service account, for the user _json_key, lasts longer",
        bare_tokens=False,
    ),
    Quirks(
        ("*.azurecr.io", "*.azurecr.cn", "*.azurecr.us"),
        login_hint="access tokens of ACR last 3 hours, for the user "
        "00000000-0000-0000-0000-000000000000; a token of a repository lasts longer",
    ),
    Quirks(
        ("ghcr.io",),
        login_hint="ghcr.io takes a personal access token (classic) with read:packages",
    ),
    Quirks(("nvcr.io",), login_hint="the user of nvcr.io is $oauthtoken, with an API key of NGC"),
)
_NONE: Final = Quirks()


def quirks_of(upstream: str, host: str | None) -> Quirks:
    """Return the quirks of an upstream with this name, at this host."""
    names = [text.partition(":")[0].lower() for text in (host or "", upstream)]
    for name in names:
        for family in FAMILIES:
            if any(fnmatchcase(name, glob) for glob in family.names):
                return family
    return _NONE
