"""``[[block]]``: images that the mirror does not give out."""

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from mirror.config.fields import Table
from mirror.config.keep import ANY_NAMING, naming
from mirror.oci.glob import InvalidGlob
from mirror.policy.blocks import Block, parse_target, spelt_out

if TYPE_CHECKING:
    from mirror.config.model import Config


def _checked_target(text: str) -> str:
    try:
        parse_target(text, ANY_NAMING)
    except InvalidGlob as error:
        raise ValueError(f"a digest, or {error}") from error
    return text


class BlockRule(Table):
    """A digest, an image or a group of images that the mirror refuses."""

    image: Annotated[str, AfterValidator(_checked_target)]
    reason: str = ""


def configured_blocks(config: "Config") -> list[Block]:
    """Return the blocks of a configuration."""
    names = naming(config)
    targets = ((parse_target(rule.image, names), rule.reason) for rule in config.block)
    return [Block(spelt_out(target), reason) for target, reason in targets]
