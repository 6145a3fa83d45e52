"""Keyless signatures: the identity in a certificate of Sigstore.  Only this module uses sigstore.

All that is trusted comes from a trusted_root.json; nothing is asked over the network.  The library
checks the certificate and its entry in the CT log, the time of the signature, and the entry in the
transparency log.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from cryptography.x509 import (
    Certificate,
    RFC822Name,
    SubjectAlternativeName,
    UniformResourceIdentifier,
)
from sigstore.errors import VerificationError
from sigstore.hashes import Hashed
from sigstore.models import Bundle, TrustedRoot
from sigstore.verify import Verifier
from sigstore.verify.policy import AnyOf, OIDCIssuer, OIDCIssuerV2
from sigstore_models.common.v1 import HashAlgorithm
from sigstore_models.trustroot.v1 import TrustedRoot as RootFile

from mirror.oci.image_glob import compile_glob
from mirror.policy.rules import Identity
from mirror.policy.signatures import NotSignedError, Signed, check_statement, identity_mark

_NEEDED: Final = (
    "a trusted_root.json of Sigstore with certificateAuthorities, ctlogs and tlogs, "
    "as `cosign trusted-root create` writes it"
)
_SHOWN: Final = 200


@lru_cache(8)
def parse_root(root: bytes) -> Verifier:
    """Return the verifier for a trusted_root.json.

    Raises:
        ValueError: the file is another one, or it lacks what each signature needs.
    """
    try:
        parsed = RootFile.from_json(root)
        verifier = Verifier(trusted_root=TrustedRoot(parsed))
    except Exception as error:
        raise ValueError(_NEEDED) from error
    if not parsed.ctlogs:
        raise ValueError(_NEEDED)
    return verifier


def keyless_signer(bundle: bytes, signed: Signed, identities: Sequence[Identity]) -> str:
    """Return the mark of the identity that signed the manifest; all have the same root.

    Raises:
        NotSignedError: none of the identities did, or they signed something else.
    """
    wanted = _Wanted(identities)
    try:
        verifier, parsed = parse_root(identities[0].root), Bundle.from_json(bundle)
        if "dsseEnvelope" in json.loads(bundle):
            check_statement(*verifier.verify_dsse(parsed, wanted), signed)
        else:
            verifier.verify_artifact(_hashed(signed), parsed, wanted)
    except NotSignedError:
        raise
    except Exception as error:  # the library raises many kinds for hostile bundles
        text = " ".join(str(error).split())[:_SHOWN]
        raise NotSignedError(f"a signature that does not verify: {text!r}") from error
    return identity_mark(wanted.found)


def _hashed(signed: Signed) -> Hashed:
    if signed.digest.algorithm != "sha256":
        raise NotSignedError("a signature of another form")
    return Hashed(algorithm=HashAlgorithm.SHA2_256, digest=bytes.fromhex(signed.digest.hex))


class _Wanted:
    """The policy that a certificate is of one of the identities, which is ``found`` then."""

    found: Identity

    def __init__(self, identities: Sequence[Identity]) -> None:
        self._identities = identities

    def verify(self, cert: Certificate) -> None:
        """Raise NotSignedError for another certificate."""
        subject = cert.extensions.get_extension_for_class(SubjectAlternativeName).value
        names = subject.get_values_for_type(UniformResourceIdentifier)
        names += subject.get_values_for_type(RFC822Name)
        named = [each for each in self._identities if _is_of(each, names)]
        for identity in named:
            issuer = identity.issuer
            try:
                AnyOf([OIDCIssuerV2(issuer), OIDCIssuer(issuer)]).verify(cert)
            except VerificationError:
                continue
            self.found = identity
            return
        who = ", ".join(names)[:_SHOWN]
        other = " with a token of another issuer" if named else ", none of the identities"
        raise NotSignedError(f"a signature by {who!r}{other}")


def _is_of(identity: Identity, names: Sequence[str]) -> bool:
    glob = compile_glob(identity.glob)
    return any(glob.fullmatch(name) for name in names)
