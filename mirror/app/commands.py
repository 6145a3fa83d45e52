"""The operator's commands, as a process of the mirror obeys them.  Translation only."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

from mirror import __version__
from mirror.app.editions import Editions
from mirror.app.store import Store
from mirror.config.naming import naming
from mirror.store.catalogue import Catalogue, Section
from mirror.store.database import IndexUnavailableError
from mirror.store.layout import ObjectKey
from mirror.upkeep.cache import Cache
from mirror.upkeep.errors import UpkeepError
from mirror.upkeep.listing import listing
from mirror.upkeep.moments import rfc3339
from mirror.upkeep.removal import removal
from mirror.web.control import Command, CommandError, Commands

_READING_THREADS: Final = 2  # apart from those that serve


@contextmanager
def opened_commands(store: Store, editions: Editions, started: float) -> Iterator[Commands]:
    """What this process, which was ``started`` then (Unix seconds), does when it is told to."""
    with ThreadPoolExecutor(_READING_THREADS, thread_name_prefix="catalogue") as threads:
        sections = Section.public(store.tags), Section.private(store.private.tags)
        catalogue = Catalogue(store.objects, sections, threads)

        def cache() -> Cache:
            return Cache(store.objects, catalogue, naming(editions.current.config))

        async def about(_: Mapping[str, Any]) -> Any:
            return {"version": __version__, "pid": os.getpid(), "started": rfc3339(started)}

        async def images(told: Mapping[str, Any]) -> Any:
            return await listing(cache(), told["patterns"])

        async def remove(told: Mapping[str, Any]) -> Any:
            return await removal(cache(), told["targets"], dry_run=told["dry_run"])

        async def forget(told: Mapping[str, Any]) -> Any:
            """Nothing of it is known any more when this has been answered."""
            for link in told["links"]:
                await editions.current.pulls.manifests.forget(link)
            for key in told["objects"]:
                store.objects.let_go(ObjectKey.parse(key))
            return {}

        yield {
            ("GET", "/control/about"): about,
            ("POST", "/control/images"): _obeyed(images),
            ("POST", "/control/remove"): _obeyed(remove),
            ("POST", "/control/forget"): _obeyed(forget),
        }


def _obeyed(command: Command) -> Command:
    """The command, with what goes wrong as one line for whoever gave it."""

    @wraps(command)
    async def obey(told: Mapping[str, Any]) -> Any:
        try:
            return await command(told)
        except (UpkeepError, IndexUnavailableError) as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"the cache directory: {error.strerror}") from error
        except (LookupError, TypeError, ValueError) as error:
            text = f"the command and this mirror are two versions: {type(error).__name__} {error}"
            raise CommandError(text) from error

    return obey
