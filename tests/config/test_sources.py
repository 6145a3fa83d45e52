"""Flags over environment over file over defaults."""

import json
import os
from pathlib import Path

import pytest

from mirror.config import load
from mirror.config.fields import state_directory
from mirror.user_error import UserError
from tests.config.conftest import WriteToml


def test_without_anything_the_defaults_hold() -> None:
    config = load()
    assert config.server.listen == ("0.0.0.0:5000",)
    assert config.cache.max_size.bytes == 50 << 30
    assert config.tags.max_age.seconds == 60
    assert config.default_upstream() == "docker.io"
    assert set(config.enabled()) == {
        "docker.io", "mcr.microsoft.com", "ghcr.io", "quay.io", "gcr.io", "registry.k8s.io",
        "public.ecr.aws", "nvcr.io",
    }  # fmt: skip


def test_flags_win_over_environment_and_environment_over_the_file(
    write_toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_toml('[server]\nlisten = ":1"\ndrain = "1s"\n[log]\nlevel = "debug"')
    monkeypatch.setenv("MIRROR_SERVER__LISTEN", ":2")
    monkeypatch.setenv("MIRROR_SERVER__DRAIN", "2s")
    config = load(file, {"server": {"listen": ":3"}})
    assert config.server.listen == (":3",)
    assert config.server.drain.seconds == 2
    assert config.log.level == "debug"


def test_the_environment_may_name_the_file(
    write_toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRROR_CONFIG", str(write_toml('[server]\nlisten = ":7"')))
    assert load().server.listen == (":7",)


def test_the_file_that_is_asked_for_wins_over_the_one_in_the_environment(
    write_toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRROR_CONFIG", "nowhere.toml")
    assert load(write_toml('[server]\nlisten = ":7"')).server.listen == (":7",)


def test_a_well_known_upstream_keeps_what_the_file_does_not_say(write_toml: WriteToml) -> None:
    hub = load(write_toml('[upstreams."docker.io"]\nusername = "me"')).upstreams["docker.io"]
    assert hub.username == "me"
    assert hub.url == "https://registry-1.docker.io"
    assert hub.library
    assert hub.default


def test_an_upstream_of_its_own_is_no_other_name_of_docker_hub(write_toml: WriteToml) -> None:
    name = "registry.hub.docker.com"
    config = load(write_toml(f'[upstreams."{name}"]\nurl = "https://{name}"'))
    assert name in config.enabled()
    assert config.upstreams["docker.io"].aliases == ("registry-1.docker.io", "index.docker.io")


def test_a_well_known_upstream_can_be_switched_off(write_toml: WriteToml) -> None:
    config = load(write_toml('[upstreams."quay.io"]\nenabled = false'))
    assert "quay.io" not in config.enabled()


def test_docker_hub_steps_back_for_another_default(write_toml: WriteToml) -> None:
    config = load(write_toml('[upstreams."r.lan:5000"]\nurl = "http://r.lan:5000"\ndefault = true'))
    assert config.default_upstream() == "r.lan:5000"
    assert not config.upstreams["docker.io"].default


@pytest.mark.parametrize("claim", ["true", "false"])
def test_the_environment_says_yes_and_no_in_words(
    claim: str, write_toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRROR_UPSTREAMS__GHCR_IO__DEFAULT", claim)
    assert load().default_upstream() == ("ghcr.io" if claim == "true" else "docker.io")


def test_the_environment_reaches_upstreams_by_their_flattened_names(
    write_toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_toml('[upstreams."my-reg.lan:5000"]\nurl = "http://my-reg.lan:5000"')
    monkeypatch.setenv("MIRROR_UPSTREAMS__DOCKER_IO__USERNAME", "hub")
    monkeypatch.setenv("MIRROR_UPSTREAMS__MY_REG_LAN_5000__USERNAME", "mine")
    monkeypatch.setenv("MIRROR_UPSTREAMS__MY_REG_LAN_5000__HOSTS", '["cache.lan"]')
    upstreams = load(file).upstreams
    assert upstreams["docker.io"].username == "hub"
    assert upstreams["my-reg.lan:5000"].username == "mine"
    assert upstreams["my-reg.lan:5000"].hosts == ("cache.lan",)


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("10.0.0.0/8", ["10.0.0.0/8"]),
        ("10.0.0.0/8, 192.168.0.0/16", ["10.0.0.0/8", "192.168.0.0/16"]),
        ('["10.0.0.0/8", "192.168.0.0/16"]', ["10.0.0.0/8", "192.168.0.0/16"]),
    ],
)
def test_the_environment_gives_a_list_with_commas_or_as_json(monkeypatch, text, networks) -> None:
    monkeypatch.setenv("MIRROR_ACCESS__NETWORKS", text)
    monkeypatch.setenv("MIRROR_SERVER__TRUSTED_PROXIES", text)
    config = load()
    assert list(map(str, config.access.networks)) == networks
    assert list(map(str, config.server.trusted_proxies)) == networks


def test_a_list_of_the_environment_that_is_not_json_is_named(monkeypatch) -> None:
    monkeypatch.setenv("MIRROR_ACCESS__NETWORKS", '["10.0.0.0/8"')
    with pytest.raises(UserError, match=r"environment: access\.networks: "):
        load()


def test_the_environment_may_give_upstreams_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"r.lan": {"url": "https://r.lan", "username": "me"}}
    monkeypatch.setenv("MIRROR_UPSTREAMS", json.dumps(tables))
    monkeypatch.setenv("MIRROR_UPSTREAMS__R_LAN__PASSWORD", "12345")
    upstream = load().upstreams["r.lan"]
    assert (upstream.username, upstream.secret()) == ("me", "12345")


def test_what_kubernetes_sets_for_a_service_called_mirror_is_no_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = load()
    monkeypatch.setenv("MIRROR_PORT", "tcp://127.0.0.1:5000")
    monkeypatch.setenv("MIRROR_PORT_5000_TCP_ADDR", "127.0.0.1")
    monkeypatch.setenv("MIRROR_SERVICE_HOST", "127.0.0.1")
    assert load() == before


def test_a_password_file_is_read_without_its_last_newline(
    write_toml: WriteToml, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(" s3cret \n")
    file = write_toml(
        f'[upstreams."docker.io"]\nusername = "me"\npassword_file = {json.dumps(str(secret))}'
    )
    assert load(file).upstreams["docker.io"].secret() == " s3cret "


def test_the_cache_of_a_user_is_in_the_users_cache_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load().cache.directory == tmp_path / "mirror"


def test_the_cache_of_root_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load().cache.directory == Path("/var/cache/mirror")


def test_the_state_is_where_the_system_expects_it_or_beside_a_chosen_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert state_directory(Path("/srv/mirror")) == Path("/srv/mirror-state")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state_directory(load().cache.directory) == Path("/var/lib/mirror")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_directory(load().cache.directory) == tmp_path / "mirror"


def test_a_tilde_means_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(None, {"cache": {"directory": "~/images"}}).cache.directory == tmp_path / "images"


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().server.listen = (":1",)


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        load(Path("nowhere.toml"))
    assert caught.value.lines == ["nowhere.toml: cannot be read: No such file or directory"]


@pytest.mark.parametrize(
    ("written", "used"),
    [
        ("https://r.lan/", "https://r.lan"),
        ("https://r.lan/v2", "https://r.lan"),
        ("https://r.lan:5000/v2/", "https://r.lan:5000"),
        ("https://v2/v2/", "https://v2"),
        ("https://r.lan/nexus/repository/hub/", "https://r.lan/nexus/repository/hub"),
        ("https://r.lan/nexus/repository/hub/v2/", "https://r.lan/nexus/repository/hub"),
        ("https://r.lan/v2/hub-proxy/", "https://r.lan/v2/hub-proxy"),
        ("https://r.lan/v2/a.b/c_d", "https://r.lan/v2/a.b/c_d"),
        ("https://r.lan/v2/v2/", "https://r.lan/v2/v2"),
        ("https://r.lan/v2/v1", "https://r.lan/v2/v1"),
    ],
)
def test_an_address_may_name_the_api_and_the_beginning_of_its_repositories(
    written: str, used: str
) -> None:
    config = load(None, {"upstreams": {"r.lan": {"url": written, "mirrors": [written]}}})
    assert config.upstreams["r.lan"].url == used
    assert config.upstreams["r.lan"].mirrors == (used,)
