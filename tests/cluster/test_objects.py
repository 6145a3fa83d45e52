"""The object store: time-outs, faults, and the breaker."""

import asyncio
import gc
import os

import pytest

from mirror.cluster.objects import opened_bucket
from mirror.cluster.tier import TierError, TierMissError
from mirror.config.cluster import ClusterConfig
from mirror.user_error import UserError
from tests.cluster.conftest import of_fake
from tests.waiting import limit, until

pytestmark = [pytest.mark.slow]

DATA = os.urandom(3_000_000)


@pytest.fixture
async def bucket(fake, events):
    bucket = opened_bucket(of_fake(fake), events)
    yield bucket
    await bucket.close()


async def read(stream) -> bytes:
    pieces = []
    while piece := await stream.read():
        pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("start", [0, 1, 2_999_999])
async def test_an_object_is_read_from_any_byte(bucket, fake, events, start):
    fake.objects["cache/a"] = DATA
    async with bucket.open("a", start) as stream:
        assert (stream.offset, stream.total) == (start, len(DATA))
        assert await read(stream) == DATA[start:]
    assert events.answers["get", "hit"] == 1
    assert events.bytes["in"] == len(DATA) - start


async def test_an_empty_object_has_no_bytes(bucket, fake):
    fake.objects["cache/a"] = b""
    async with bucket.open("a") as stream:
        assert (stream.total, await stream.read()) == (0, b"")


@pytest.mark.parametrize("size", [0, len(DATA)])
async def test_a_download_that_is_given_up_at_once_is_no_error_of_asyncio(
    bucket, fake, caplog, size
):
    fake.objects["cache/a"] = DATA[:size]
    async with bucket.open("a"):
        await asyncio.sleep(0.2)  # the first chunk, which nothing reads, has arrived by then
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_a_missing_object_is_a_miss_and_no_trouble(bucket, events):
    with pytest.raises(TierMissError):
        async with bucket.open("a"):
            pass
    assert await bucket.lookup("a") is None
    assert bucket.up
    assert events.answers["get", "miss"] == events.answers["head", "miss"] == 1


async def test_objects_are_written_once_or_replaced_and_removed(bucket, fake):
    assert await bucket.write("a", b"one", replace=False)
    assert not await bucket.write("a", b"two", replace=False)
    assert await bucket.read("a", most=10) == b"one"
    assert await bucket.write("a", b"three")
    assert fake.objects == {"cache/a": b"three"}
    with pytest.raises(TierError, match="5 bytes"):
        await bucket.read("a", most=4)
    await bucket.delete("a")
    await bucket.delete("a")
    assert fake.objects == {}


@pytest.mark.long
@pytest.mark.slow
async def test_a_store_that_hangs_costs_one_wait_until_it_answers(fake, events, caplog):
    bucket = opened_bucket(of_fake(fake, "4s"), events)
    fake.objects["cache/a"] = DATA
    fake.hang.clear()
    with pytest.raises(TierError, match="no answer in time"):
        async with bucket.open("a"):
            pass
    asked = fake.asked["GET"]
    with pytest.raises(TierError, match="not asked again"):
        async with bucket.open("a"):
            pass
    assert fake.asked["GET"] == asked
    await until(lambda: bucket.availability.problem)
    fake.hang.set()
    async with limit():
        await bucket.availability.wait()
    assert bucket.availability.problem is None
    async with bucket.open("a") as stream:
        assert await read(stream) == DATA
    assert (events.up[0], *events.up[-2:]) == (True, False, True)
    (begins, ends) = [record.message for record in caplog.records if "mirror" in record.name]
    assert begins.startswith("s3://images/cache does not answer: no answer in time; check ")
    assert ends.startswith("s3://images/cache answers again, after ")
    await bucket.close()


@pytest.mark.parametrize("status", [403, 500, 503])
async def test_a_store_that_refuses_everything_is_down(bucket, fake, status):
    fake.status = status
    with pytest.raises(TierError):
        async with bucket.open("a"):
            pass
    await until(lambda: bucket.availability.problem)
    assert not bucket.up
    fake.status = 0
    async with limit():
        await bucket.availability.wait()


async def test_a_store_that_is_gone_is_down(fake, events):
    config = of_fake(fake)
    bucket = opened_bucket(config.model_copy(update={"endpoint": "http://127.0.0.1:1"}), events)
    with pytest.raises(TierError, match="s3://images/cache: "):
        async with bucket.open("a"):
            pass
    await until(lambda: bucket.availability.problem)
    await bucket.close()


async def test_a_full_store_can_be_read(bucket, fake):
    fake.objects["cache/a"] = DATA
    fake.refuse = 507
    with pytest.raises(TierError):
        await bucket.write("b", b"more")
    assert bucket.up
    async with bucket.open("a") as stream:
        assert await read(stream) == DATA


async def test_a_download_that_breaks_off_is_an_error(bucket, fake):
    fake.objects["cache/a"] = DATA
    fake.cut = 1_000_000
    with pytest.raises(TierError):
        async with bucket.open("a") as stream:
            await read(stream)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1024 * 1024, 128 * 1024])  # no whole chunk in time at 128 KiB/s
async def test_a_slow_download_is_given_up_and_the_store_asked_again(bucket, fake, rate):
    fake.objects["cache/a"] = DATA * 4
    fake.rate = rate
    with pytest.raises(TierError, match="is slow"):
        async with bucket.open("a") as stream:
            await read(stream)
    assert bucket.up


async def test_an_upload_in_parts_appears_at_its_end_or_not_at_all(bucket, fake):
    async def pieces(fail: bool):
        for _ in range(10):
            yield DATA
            await asyncio.sleep(0)
        if fail:
            raise EOFError

    with pytest.raises(EOFError):
        await bucket.upload("a", pieces(fail=True), 10 * len(DATA))
    await until(lambda: not fake.parts)
    assert fake.objects == {}
    await bucket.upload("a", pieces(fail=False), 10 * len(DATA))
    assert fake.objects == {"cache/a": 10 * DATA}


async def test_keys_come_from_a_file(fake, events, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    file = tmp_path / "credentials"
    keys = {"objects": "s3://b", "endpoint": fake.url, "credentials_file": str(file)}
    file.write_text("[other]\n")
    with pytest.raises(UserError, match=r"s3://b: .* has no aws_access_key_id below \[default\]"):
        opened_bucket(ClusterConfig.model_validate(keys), events)
    file.write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = b%\naws_session_token = c\n"
    )
    bucket = opened_bucket(ClusterConfig.model_validate(keys), events)
    assert await bucket.lookup("a") is None
    await bucket.close()


def test_a_store_that_cannot_be_used_is_one_line(events, monkeypatch, tmp_path):
    with pytest.raises(
        UserError, match=r"^\[cluster\] objects = az://c: set AZURE_STORAGE_ACCOUNT_NAME"
    ):
        opened_bucket(ClusterConfig(objects="az://c"), events)
    file = tmp_path / "key.json"
    file.write_text("{}")
    keys = {"objects": "gs://b", "credentials_file": str(file)}
    with pytest.raises(UserError, match=r"^\[cluster\] objects = gs://b: "):
        opened_bucket(ClusterConfig.model_validate(keys), events)
