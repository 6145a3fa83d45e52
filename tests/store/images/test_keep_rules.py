"""What a rule keeps stays kept, whatever the clock says."""

from concurrent.futures import ThreadPoolExecutor

from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.manifest import Descriptor
from mirror.store.images.catalogue import Catalogue, Section
from mirror.store.images.keep import KeptImages
from mirror.store.interface import Link, link_name
from mirror.store.local.eviction import Limits
from mirror.store.local.layout import MANIFESTS, ObjectKey
from mirror.store.local.objects import Objects
from mirror.store.metadata.kv import KeyValueStore
from mirror.store.metadata.records import Tags
from tests.fakes.content import OCI_MANIFEST
from tests.store.local.test_eviction import Evictions


async def test_a_clock_set_back_in_the_middle_of_a_review_lets_nothing_go(layout):
    image, digest = FullName("docker.io", "library/app", "1"), Digest.of(b"some manifest")
    readings = iter([1e9])
    with ThreadPoolExecutor(2) as threads:
        objects = Objects(layout, Limits(10_000_000, 0), Evictions(), threads)
        await objects.open()
        notes = KeyValueStore(layout.tags)
        await notes.heal()
        section = Section.public(Tags(notes))
        link = Link(Descriptor(OCI_MANIFEST, digest, 13), 1e9)
        await section.tags.put(link_name(image), link)
        catalogue = Catalogue(objects, (section,), threads)
        keeping = KeptImages(objects, catalogue, lambda: next(readings, 1e9 - 3600))
        keeping.rule = lambda _: True
        await keeping.review()
        key = ObjectKey(MANIFESTS, digest)
        assert await objects.consult(lambda index: index.kept.among([key])) == {key}
        await notes.close()
        await objects.close()
