"""The configuration as TOML again."""

import json
import tomllib
from pathlib import Path

import pytest

from mirror.config import load
from mirror.config.dump import dump_toml
from tests.config.conftest import WriteToml
from tests.fakes.sigstore import GITHUB, WORKFLOW, Sigstore

SECRETS = """
    [fetch]
    proxy = "http://me:hunter1@proxy.lan:3128"
    [upstreams."r.lan"]
    url = "https://r.lan"
    username = "me"
    password = "hunter2"
    """


def test_what_is_dumped_is_read_back_the_same(write_toml: WriteToml) -> None:
    config = load(
        write_toml('[cache]\nmax_size = "80%"\n[upstreams."quay.io"]\nhosts = ["a", "b"]')
    )
    assert load(write_toml(dump_toml(config))) == config


@pytest.mark.parametrize("when", ["", 'at = "3:30"', 'every = "90s"'])
def test_lists_of_tables_are_read_back_the_same(when: str, write_toml: WriteToml) -> None:
    one = f'[[warm]]\nimages = ["alpine"]\n{when}\n'
    config = load(write_toml(f'{one}{one}platforms = ["arm64", "all"]\n'))
    assert len(config.warm) == 2
    assert load(write_toml(dump_toml(config))) == config


def test_rules_of_what_is_kept_are_read_back_the_same(write_toml: WriteToml) -> None:
    config = load(write_toml('[[keep]]\nimages = ["alpine", "quay.io/**"]\n' * 2))
    assert [rule.images for rule in config.keep] == [("alpine", "quay.io/**")] * 2
    assert load(write_toml(dump_toml(config))) == config


def test_the_identity_of_a_signer_is_read_back_the_same(
    tmp_path: Path, write_toml: WriteToml
) -> None:
    (tmp_path / "root.json").write_text(json.dumps(Sigstore().root))
    signer = f'{{ identity = "{WORKFLOW}", issuer = "{GITHUB}" }}'
    config = load(
        write_toml(
            f'[[policy]]\nimages = ["alpine"]\nidentities = [{signer}, {signer}]\n'
            f'trusted_root = "{tmp_path / "root.json"}"\n'
        )
    )
    assert WORKFLOW in dump_toml(config)
    assert load(write_toml(dump_toml(config))) == config


@pytest.mark.parametrize("name", ["plain", 'quo"te', "back\\slash", "tab\t", "émoji 🐋", "del\x7f"])
def test_any_directory_survives(name: str, write_toml: WriteToml) -> None:
    config = load(None, {"cache": {"directory": f"/{name}"}})
    assert load(write_toml(dump_toml(config))).cache.directory == Path(f"/{name}")


def test_secrets_are_masked(write_toml: WriteToml) -> None:
    text = dump_toml(load(write_toml(SECRETS)))
    assert "hunter" not in text
    assert tomllib.loads(text)["upstreams"]["r.lan"]["password"] == "********"
    assert tomllib.loads(text)["fetch"]["proxy"] == "http://********@proxy.lan:3128"


def test_an_empty_password_is_seen_to_be_empty() -> None:
    assert tomllib.loads(dump_toml(load()))["upstreams"]["docker.io"]["password"] == ""
