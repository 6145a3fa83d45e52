"""Tables of images: what is kept, what tags mean here, and what is refused.

``[[keep]]``, ``[[policy]]``, ``[[pin]]`` and ``[[block]]``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import AfterValidator, model_validator

from mirror.config.fields import DurationField, ReadableFile, Table, time, where
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName, ImageGlob, InvalidGlob, Naming, compile_glob
from mirror.policy.blocks import Block, Blocks, parse_target, spelt_out
from mirror.policy.rules import Identity, Pin, Rule
from mirror.user_error import UserError

if TYPE_CHECKING:
    from mirror.config.model import Config

#: Completes names to check their spelling.
_ANY_NAMING: Final = Naming("registry.example")
_SHOWN: Final = 5
_LONGEST_COOLDOWN: Final = 3650 * 86_400.0


def _checked_glob(text: str) -> str:
    try:
        ImageGlob.parse(text, _ANY_NAMING)
    except InvalidGlob as error:
        raise ValueError(str(error)) from error
    return text


Globs = Annotated[
    tuple[Annotated[str, AfterValidator(_checked_glob)], ...],
    where(bool, "at least one image or glob"),
]


class KeepRule(Table):
    """A group of images that are never evicted."""

    images: Globs


def naming(config: "Config") -> Naming:
    """Return the rules to complete short image names."""
    upstreams = config.enabled()
    return Naming(
        config.default_upstream(),
        {alias.lower(): name for name, each in upstreams.items() for alias in each.aliases},
        frozenset(name for name, upstream in upstreams.items() if upstream.library),
    )


def kept_images(config: "Config") -> list[ImageGlob]:
    """Return the globs of all rules."""
    names = naming(config)
    return [ImageGlob.parse(text, names) for rule in config.keep for text in rule.images]


def unknown_registries(config: "Config") -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the key and the text of each mistake: a glob that matches no configured registry."""
    upstreams, names = config.enabled(), naming(config)
    for place, text in _globs(config):
        target = parse_target(text, names)
        if isinstance(target, ImageGlob) and not any(map(target.may_mean, upstreams)):
            known = ", ".join([*upstreams][:_SHOWN])
            told = f"found {text!r}, which is of no upstream, allowed: images of {known}, ..."
            yield place, told


def _globs(config: "Config") -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the key and the value of each glob of images, or digest, of a configuration."""
    for table in ("keep", "policy"):
        for number, rule in enumerate(getattr(config, table)):
            for place, text in enumerate(rule.images):
                yield (table, str(number), "images", str(place)), text
    for number, block in enumerate(config.block):
        yield ("block", str(number), "image"), block.image
    for number, pin in enumerate(config.pin):
        yield ("pin", str(number), "image"), pin.image


def _checked_target(text: str) -> str:
    try:
        parse_target(text, _ANY_NAMING)
    except InvalidGlob as error:
        raise ValueError(f"a digest, or {error}") from error
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())  # a refusal is one line


Reason = Annotated[str, AfterValidator(_one_line)]


class BlockRule(Table):
    """A digest, an image or a group of images that the mirror refuses."""

    image: Annotated[str, AfterValidator(_checked_target)]
    reason: Reason = ""


def _checked_tag(text: str) -> str:
    try:
        target = parse_target(text, _ANY_NAMING)
    except InvalidGlob:
        target = None
    if not isinstance(target, ImageGlob) or target.exact is None:
        raise ValueError("an image with a tag, such as python:3.12")
    return text


def _checked_digest(text: str) -> str:
    Digest.parse(text)
    return text


class PinRule(Table):
    """What a tag means for the clients of this mirror."""

    image: Annotated[str, AfterValidator(_checked_tag)]
    digest: Annotated[str, AfterValidator(_checked_digest)]
    note: Reason = ""


def _checked_key(file: str) -> str:
    # Imported late: it costs 8 MiB, which mirrors without keys should not pay.
    from mirror.policy.signatures import parse_key  # noqa: PLC0415

    parse_key(Path(file).read_bytes() if file else b"")
    return file


def _checked_root(file: str) -> str:
    if not file:
        return file
    try:
        # Imported late: it costs 15 MiB, which mirrors without identities should not pay.
        from mirror.policy.keyless import parse_root  # noqa: PLC0415
    except ImportError as error:
        raise UserError(
            "[[policy]] trusted_root is set, but sigstore is not installed: "
            "pip install 'container-mirror[sigstore]', or remove identities and trusted_root"
        ) from error
    parse_root(Path(file).read_bytes())
    return file


def _checked_identity(text: str) -> str:
    if not text.strip():
        raise ValueError("an identity or a glob, as for --certificate-identity of cosign")
    compile_glob(text)
    return text


class IdentityRule(Table):
    """A signer without a key, as in its certificate."""

    identity: Annotated[str, AfterValidator(_checked_identity)]
    issuer: Annotated[
        str,
        where(
            lambda text: text.startswith(("https://", "http://")),
            "an address such as https://token.actions.githubusercontent.com",
        ),
    ]


class PolicyRule(Table):
    """A rule for a group of images; the first rule that matches an image counts."""

    images: Globs
    signed_by: tuple[Annotated[ReadableFile, AfterValidator(_checked_key)], ...] = ()
    identities: tuple[IdentityRule, ...] = ()
    trusted_root: Annotated[ReadableFile, AfterValidator(_checked_root)] = ""
    cooldown: Annotated[
        DurationField,
        where(
            lambda time: time.seconds <= _LONGEST_COOLDOWN,
            "a time of at most 3650d; to refuse images, use [[block]]",
        ),
    ] = time("0s")
    unseen: Literal["created", "allow", "deny"] = "created"
    digests: Literal["allow", "check"] = "allow"
    mode: Literal["enforce", "audit"] = "enforce"

    @model_validator(mode="after")
    def _check_root(self) -> Self:
        if bool(self.identities) != bool(self.trusted_root):
            raise ValueError("identities and trusted_root, both or neither")
        return self

    def signers(self) -> tuple[Identity, ...]:
        """Return the identities, with the content of ``trusted_root``."""
        root = Path(self.trusted_root).read_bytes() if self.identities else b""
        return tuple(Identity(each.identity, each.issuer, root) for each in self.identities)


def configured_rules(config: "Config") -> list[Rule]:
    names = naming(config)
    return [
        Rule(
            tuple(ImageGlob.parse(text, names) for text in rule.images),
            rule.cooldown.seconds,
            rule.unseen,
            rule.digests == "check",
            rule.mode == "audit",
            tuple(Path(file).read_bytes() for file in rule.signed_by),
            rule.signers(),
        )
        for rule in config.policy
    ]


def configured_pins(config: "Config") -> dict[FullName, Pin]:
    """Return the pins of a configuration; of two for one tag, the first counts."""
    names = naming(config)
    pins: dict[FullName, Pin] = {}
    for rule in config.pin:
        target = parse_target(rule.image, names)
        assert isinstance(target, ImageGlob), "checked"
        assert target.exact is not None, "checked"
        pins.setdefault(target.exact, Pin(target.exact, Digest.parse(rule.digest), rule.note))
    return pins


def governed_upstreams(config: "Config") -> set[str]:
    """Return the upstreams to whose images a rule, a pin or a block of a configuration applies."""
    pins, blocks = configured_pins(config), Blocks.of(configured_blocks(config))
    rules = configured_rules(config)
    return {
        name
        for name in config.enabled()
        if blocks.may_cover(name)
        or any(pin.registry == name for pin in pins)
        or any(rule.may_cover(name) for rule in rules)
    }


def configured_blocks(config: "Config") -> list[Block]:
    names = naming(config)
    targets = ((parse_target(rule.image, names), rule.reason) for rule in config.block)
    return [Block(spelt_out(target), reason) for target, reason in targets]
