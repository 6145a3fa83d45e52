"""What a reload says of the configuration that was read again."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from mirror.config import Config, load
from mirror.config.changes import FIXED, changes, in_force
from mirror.config.fields import Duration, Size

HUB = "docker.io"


def told(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [str(change) for change in changes(load(None, before), load(None, after))]


def test_the_same_again_is_no_change():
    assert told({"tags": {"max_age": "5m"}}, {"tags": {"max_age": "5m"}}) == []


def test_a_key_is_told_as_toml_spells_it_with_both_values():
    table = {"url": "https://r.example.com", "max_rate": "50MiB"}
    assert told(
        {"upstreams": {HUB: {"allow": ["**"]}}},
        {"tags": {"max_age": "5m"}, "upstreams": {HUB: {"allow": ["library/**"]}}},
    ) == [
        'tags.max_age = "60s" -> "5m"',
        'upstreams."docker.io".allow = ["**"] -> ["library/**"]',
    ]
    assert told({}, {"upstreams": {"r.example.com": table}}) == [
        'upstreams."r.example.com" added: https://r.example.com'
    ]
    assert told({"upstreams": {"r.example.com": table}}, {}) == [
        'upstreams."r.example.com" removed'
    ]


def test_secrets_are_never_told():
    def having(password: str) -> dict[str, Any]:
        proxy = f"http://me:{password}@proxy.example.com"
        hub = {"username": "me", "password": password}
        return {"upstreams": {HUB: hub}, "fetch": {"proxy": proxy}}

    lines = told(having("old-secret"), having("new-secret"))
    assert lines == [
        'fetch.proxy = "http://********@proxy.example.com" -> "http://********@proxy.example.com"',
        'upstreams."docker.io".password = "********" -> "********"',
    ]


def test_what_waits_for_a_restart_says_so_and_stays_as_it_is():
    running, read = load(), load(None, {"server": {"listen": ":5001", "drain": "1m"}})
    assert [str(change) for change in changes(running, read)] == [
        'server.listen = "0.0.0.0:5000" -> ":5001" (waits for a restart)',
        'server.drain = "30s" -> "1m"',
    ]
    effective = in_force(running, read)
    assert effective.server.listen == ("0.0.0.0:5000",)
    assert effective.server.drain.seconds == 60
    assert changes(effective, read) == [changes(running, read)[0]], "it is told the next time too"


def test_tls_cannot_be_switched_on_without_a_restart_but_its_files_can_change(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)

    def using(name: str) -> dict[str, Any]:
        file = str(tmp_path / name)
        return {"server": {"tls_certificate": file, "tls_key": file}}

    assert [change.waits for change in changes(load(), load(None, using("a")))] == [True, True]
    before, after = load(None, using("a")), load(None, using("b"))
    assert [change.waits for change in changes(before, after)] == [False, False]


def another(value: Any) -> Any:
    others = {
        bool: lambda: not value,
        int: lambda: value + 1,
        float: lambda: value / 2,
        str: lambda: f"other{value}",
        tuple: lambda: (*value, "other"),
        Size: lambda: Size.parse("7MiB"),
        Duration: lambda: Duration.parse("7s"),
    }
    return others.get(type(value), lambda: Path("/other"))()


@pytest.mark.parametrize("section", [name for name in Config.model_fields if name != "upstreams"])
def test_every_key_that_differs_is_told(section: str):
    config = load()
    table = getattr(config, section)
    keys = type(table).model_fields if isinstance(table, BaseModel) else ()
    for key in keys:
        other = table.model_copy(update={key: another(getattr(table, key))})
        (change,) = changes(config, config.model_copy(update={section: other}))
        assert change.text.startswith(f"{section}.{key} = ")
        assert change.waits == ((section, key) in FIXED) or "tls" in key or key == "secret_file"


def test_the_keys_of_a_cluster_wait_with_its_servers(tmp_path: Path):
    (tmp_path / "secret").write_text("s" * 32)

    def cluster(**keys: Any) -> dict[str, Any]:
        secret = {"secret_file": str(tmp_path / "secret"), "advertise": "http://a:1"}
        return {"cluster": {"objects": "s3://b", **secret, "peers": ["http://a:1"], **keys}}

    more = {"peers": ["http://a:1", "http://b:1"], "max_size": "1GiB"}
    before, after = load(None, cluster()), load(None, cluster(**more))
    assert [change.waits for change in changes(before, after)] == [False, False]
    assert in_force(before, after) == after
    after = load(None, cluster(**more, objects="s3://c"))
    assert [change.waits for change in changes(before, after)] == [True, True, True]
    assert in_force(before, after) == before
    assert all(change.waits for change in changes(load(), after)), "there was no cluster"
