"""An object store, Redis and peers whose certificates are of a company's own authority."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

from mirror.cluster.objects import opened_bucket
from mirror.cluster.state import opened_state
from mirror.cluster.tier import TierError
from mirror.config.cluster import ClusterConfig
from mirror.doctor.cluster import examine_cluster
from mirror.doctor.report import is_wrong
from mirror.user_error import UserError
from tests.cluster.replicas import PATIENCE_SECONDS, replicas
from tests.fakes import random_bytes
from tests.fakes.bucket import BUCKET
from tests.peers.fault_proxy import FaultProxy
from tests.running import eventually

pytestmark = [pytest.mark.slow]


@pytest.fixture
async def servers(tmp_path, fake, redis) -> AsyncIterator[dict[str, Any]]:
    """``[cluster]`` with both servers behind TLS, and the authority of their certificates."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with AsyncExitStack() as stack:
        bucket, state = [
            await stack.enter_async_context(FaultProxy(port, tls=context).running())
            for port in (fake.port, redis.port)
        ]
        yield {
            "objects": f"s3://{BUCKET}/cache",
            "endpoint": bucket.url,
            "first_byte_timeout": "20s",
            "state": f"rediss://127.0.0.1:{state.port}/0",
            "ca_file": str(tmp_path / "ca.pem"),
        }


async def test_replicas_use_both(servers, tmp_path, upstream, fake):
    digest = upstream.add_blob(random_bytes(200_000))
    path = f"/v2/library/app/blobs/{digest}"
    async with replicas(tmp_path, upstream, 2, **servers) as cluster:
        for mirror in cluster.mirrors:
            assert (await mirror.get(path)).status == 200
        await eventually(cluster.mirrors[0], 'mirror_uploads_total{result="stored"}', 1)
        leads = 'mirror_leases_total{result="leads"}'
        leases = [(await each.metrics()).get(leads, 0.0) for each in cluster.mirrors]
    assert len(fake.objects) == 1
    assert sum(leases) == 1, "Redis told which replica leads"


async def test_without_the_authority_neither_is_used(servers, events):
    config = ClusterConfig.model_validate({**servers, "ca_file": ""})
    bucket = opened_bucket(config, events)
    with pytest.raises(TierError, match=r"not trusted \(UnknownIssuer\): ca_file adds a CA"):
        await bucket.read("a", 10)
    await bucket.close()
    async with opened_state(config.state, events, PATIENCE_SECONDS) as state:
        assert not state.availability.up


async def test_doctor_looks_at_both(servers):
    findings = (await examine_cluster(ClusterConfig.model_validate(servers))).findings
    about = {each.where for each in findings if not is_wrong(each)}
    assert {servers["objects"], servers["state"]} <= about
    findings = (
        await examine_cluster(ClusterConfig.model_validate({**servers, "ca_file": ""}))
    ).findings
    wrong = {each.where for each in findings if is_wrong(each)}
    assert {servers["objects"], servers["state"]} <= wrong


async def test_a_file_without_certificates_is_one_line(servers, tmp_path, upstream, events):
    file = tmp_path / "none.pem"
    file.write_text("no certificate\n")
    table = {**servers, "ca_file": str(file)}
    config = ClusterConfig.model_validate(table)
    with pytest.raises(UserError, match="ca_file holds no certificate"):
        opened_bucket(config, events)
    with pytest.raises(UserError, match="ca_file holds no certificate"):
        await examine_cluster(config.model_copy(update={"objects": "", "endpoint": ""}))
    only_redis = {key: table[key] for key in ("state", "ca_file")}
    with pytest.raises(UserError, match=r"\[cluster\] ca_file holds no certificate"):
        async with replicas(tmp_path, upstream, 1, **only_redis):
            pass


def test_the_file_needs_a_server(tmp_path: Path):
    file = tmp_path / "ca.pem"
    file.write_text("")
    with pytest.raises(ValueError, match="ca_file with objects, state or peers"):
        ClusterConfig.model_validate({"ca_file": str(file)})
