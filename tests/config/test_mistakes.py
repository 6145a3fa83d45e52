"""Every mistake is one line: where, which key, what was found, what is allowed."""

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from mirror.config import Config, UpstreamConfig, load
from mirror.user_error import UserError
from tests.config.conftest import WriteToml

Tree = dict[str, object]


def problems(file: Path | None = None, flags: Tree | None = None) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(file, flags)
    return caught.value.lines


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ('[server]\nlisten = "nope"',
         "server.listen: found 'nope', allowed: HOST:PORT, such as 0.0.0.0:5000, [::]:5000 or"),
        ('[server]\nlisten = ":65536"', "server.listen: found ':65536', allowed: HOST:PORT"),
        ("[server]\ndrain = 30", "server.drain: found 30, allowed: a time such as 30s"),
        ('[server]\nlistne = ":1"', "server.listne: no such key (did you mean listen?)"),
        ("[sever]", "sever: no such key (did you mean server?)"),
        (
            "zzz = 1",
            "zzz: no such key (there are: server, access, proxy, limits, log, cache, tags, fetch, fill, tracing, cluster, keep, block, policy, pin, warm, upstreams)",  # noqa: E501
        ),
        ('[upstreams.docker.io]\nusername = "me"',
         'upstreams.docker.io: a name with dots needs quotes: [upstreams."docker.io"]'),
        ('[upstreams.registry.example.com]\nurl = "https://registry.example.com"',
         'upstreams.registry.example: a name with dots needs quotes: [upstreams."registry.exam'),
        ("tags = 5", "tags: found a value of type int, allowed: a table"),
        ('[log]\nlevel = "loud"',
         "log.level: found 'loud', allowed: 'debug', 'info', 'warning' or 'error'"),
        ('[log]\naccess = "maybe"', "log.access: found 'maybe', allowed: true or false"),
        ('[tracing]\nsample = "x"', "tracing.sample: found 'x', allowed: a share between 0 and 1"),
        ("[tracing]\nsample = []", "tracing.sample: found [], allowed: a share between 0 and 1"),
        ('[cluster]\nobjects = "bucket"',
         "cluster.objects: found 'bucket', allowed: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or"),
        ('[cluster]\nobjects = "s3://key:secret@bucket"',
         "cluster.objects: found 's3://********@bucket', allowed: s3://BUCKET/PREFIX"),
        ('[cluster]\nobjects = "s3://b"\nendpoint = "b.lan:80"',
         "cluster.endpoint: found 'b.lan:80', allowed: an http or https address"),
        ('[cluster]\nobjects = "gs://b"\nendpoint = "http://b.lan"',
         "cluster: found these keys together, allowed: endpoint, region and redirect"),
        ('[cluster]\nobjects = "file:///b"\nredirect_networks = ["10.0.0.0/8"]',
         "cluster: found these keys together, allowed: redirect_networks with objects that begins"),
        ('[cluster]\nredirect_networks = ["10.0.0.0/8"]',
         "cluster: found these keys together, allowed: redirect_networks with objects"),
        ('[cluster]\nobjects = "gs://b"\nmax_size = "50%"',
         "cluster.max_size: found '50%', allowed: a size such as 500GiB or 2TiB, or 0 for no"),
        ('[cluster]\nmax_size = "1TiB"',
         "cluster: found these keys together, allowed: max_size with objects"),
        ('[cluster]\nregion = "here"',
         "cluster: found these keys together, allowed: region with objects"),
        ('[cluster]\nobjects = "az://a/c"\ncredentials_file = "/dev/null"',
         "cluster: found these keys together, allowed: credentials_file with objects that begins"),
        ('[cluster]\nstate = "redis.lan:6379"',
         "cluster.state: found 'redis.lan:6379', allowed: the address of Redis or Valkey such as"),
        ('[cluster]\nstate = "redis://:secret@r.lan:x"',
         "cluster.state: found 'redis://********@r.lan:x', allowed: the address of Redis"),
        ('[cluster]\nsecret_file = "/dev/null"',
         "cluster.secret_file: found '/dev/null', allowed: a file with 32 characters or more"),
        ('[cluster]\npeers = ["dns:mirrors"]',
         "cluster.peers.0: found 'dns:mirrors', allowed: the address of a mirror such as http://"),
        ('[cluster]\npeers = ["http://10.1.2.3:5000"]',
         "cluster: found these keys together, allowed: peers with advertise and secret_file"),
        ('[cluster]\nadvertise = "http://10.1.2.3:5000"',
         "cluster: found these keys together, allowed: advertise with peers or state"),
        ('[cluster]\nadvertise = "http://10.1.2.3:5000"\nstate = "redis://r.lan"',
         "cluster: found these keys together, allowed: advertise with secret_file"),
        ("[server]\nworkers = inf", "server.workers: found inf, allowed: a whole number"),
        ('[cache]\ndirectory = ""', "cache.directory: found '', allowed: a directory"),
        ('[cache]\ndirectory = "~no-such-user/x"', "cache.directory: found '~no-such-user/x', "),
        ('[cache]\nmax_size = "lots"', "cache.max_size: found 'lots', allowed: a size such as"),
        ('[fetch]\nidle_timeout = "0s"',
         "fetch.idle_timeout: found '0s', allowed: a time above zero"),
        ('[fetch]\nproxy = "socks5://p:1"',
         "fetch.proxy: found 'socks5://p:1', allowed: an http or https address such as"),
        ('[fetch]\nca_file = "nowhere.pem"',
         "fetch.ca_file: found 'nowhere.pem', allowed: a text file that can be read (No such file"),
        ('[[warm]]\nimages = ["a:1", "Nope"]',
         "warm.0.images.1: found 'Nope', allowed: the name of an image, such as alpine:3.20 ("),
        ("[[warm]]\nimages = []", "warm.0.images: found [], allowed: at least one image"),
        ("[[warm]]\nparallel = 2", "warm.0.images: is missing"),
        ('[[warm]]\nimages = ["a"]\nevry = "1h"',
         "warm.0.evry: no such key (did you mean every?)"),
        ('[[warm]]\nimages = ["a"]\nplatforms = ["x"]',
         "warm.0.platforms.0: found 'x', allowed: os/arch[/variant] such as linux/arm64, or all"),
        ('[[warm]]\nimages = ["a"]\nat = "24:00"',
         "warm.0.at: found '24:00', allowed: a time of day such as 03:00"),
        ('[[warm]]\nimages = ["a"]\nat = "3:00"\nevery = "1h"',
         "warm.0: found these keys together, allowed: either every, a time above zero, or at"),
        ('[[warm]]\nimages = ["a"]\nevery = "0s"', "warm.0: found these keys together, allowed: "),
        ('[warm]\nimages = ["a"]', "warm: found a table, allowed: tables, each below [[warm]]"),
        ('[upstreams."r.lan"]\nusername = "me"',
         'upstreams."r.lan".url: is missing (only well-known registries have one built in)'),
        ('[upstreams."r.lan"]\nurl = "ftp://r.lan"',
         """upstreams."r.lan".url: found 'ftp://r.lan', allowed: an http or https address"""),
        ('[upstreams."r.lan"]\nurl = "https://r.lan/v1/"',
         """upstreams."r.lan".url: found 'https://r.lan/v1/', allowed: an address without /v1"""),
        ('[upstreams."r.lan"]\nurl = "https://r.lan/V2/hub"',
         """upstreams."r.lan".url: found 'https://r.lan/V2/hub', allowed: an address without"""),
        ('[upstreams."r.lan"]\nurl = "https://r.lan/v2/Hub"',
         """upstreams."r.lan".url: found 'https://r.lan/v2/Hub', allowed: a path below /v2/"""),
        ('[upstreams."r.lan"]\nurl = "https://r.lan/v2/_catalog"',
         """upstreams."r.lan".url: found 'https://r.lan/v2/_catalog', allowed: a path below"""),
        ('[upstreams."r.lan"]\nurl = "https://r.lan/v2/r.lan:5000"',
         """upstreams."r.lan".url: found 'https://r.lan/v2/r.lan:5000', allowed: a path below"""),
        ('[upstreams."r.lan"]\nurl = "https://r.lan/v2/hub%2Dproxy"',
         """upstreams."r.lan".url: found 'https://r.lan/v2/hub%2Dproxy', allowed: an address"""),
        ('[upstreams."r.lan"]\nurl = "https://r.lan/v2//hub"',
         """upstreams."r.lan".url: found 'https://r.lan/v2//hub', allowed: an address whose"""),
        ('[upstreams."quay.io"]\nmirrors = ["https://r.lan/v2/.."]',
         """upstreams."quay.io".mirrors.0: found 'https://r.lan/v2/..', allowed: an address"""),
        ('[upstreams."r.lan"]\nurl = "https://r.lan/a/../b"',
         """upstreams."r.lan".url: found 'https://r.lan/a/../b', allowed: an address whose path"""),
        ('[upstreams."r.lan"]\nurl = "https://r.lan:99999"', 'upstreams."r.lan".url: found'),
        ('[upstreams."R_lan/x"]\nurl = "https://r.lan"',
         """upstreams."R_lan/x": found 'R_lan/x', allowed: a registry's name in lower case"""),
        ('upstreams."docker.io" = 3',
         'upstreams."docker.io": found a value of type int, allowed: a table'),
        ('[upstreams."quay.io"]\nhosts = "q.lan"',
         """upstreams."quay.io".hosts: found 'q.lan', allowed: a list of texts"""),
        ('[upstreams."quay.io"]\nusername = "a"\npassword = "b"\npassword_file = "/dev/null"',
         'upstreams."quay.io": found these keys together, allowed: either password or'),
        ('[upstreams."quay.io"]\npassword = "b"',
         'upstreams."quay.io": found these keys together, allowed: a password with a username'),
        ('[upstreams."quay.io"]\ndefault = true\n[upstreams."ghcr.io"]\ndefault = true',
         'upstreams."quay.io".default: found true, which ghcr.io says too, allowed: one default'),
        ('[upstreams."docker.io"]\nenabled = false',
         "upstreams: found no default, allowed: default = true for one that is enabled"),
        ('[upstreams."docker.io"]\ndefault = false', "upstreams: found no default"),
        ('[upstreams."quay.io"]\naliases = ["ghcr.io"]',
         """upstreams."quay.io".aliases: found 'ghcr.io', which means ghcr.io already"""),
        ('[upstreams."quay.io"]\nhosts = ["a"]\n[upstreams."gcr.io"]\nhosts = ["A"]',
         """upstreams."gcr.io".hosts: found 'A', which means quay.io already"""),
        ('[access]\nhtpasswd_file = "/dev/null"\n[upstreams."quay.io"]\nclient_credentials = true',
         "access.htpasswd_file: found a file, but quay.io has client_credentials = true"),
        ('[[keep]]\nimages = ["alpine", "al pine"]',
         "keep.0.images.1: found 'al pine', allowed: names and globs such as docker.io/"),
        ('[[keep]]\nimages = ["dot**net"]',
         "keep.0.images.0: found 'dot**net', allowed: ** by itself between slashes"),
        ('[[keep]]\nimages = ["alpine"]\n[[keep]]\nimages = ["mcr.microsft.com/**"]',
         "keep.1.images.0: found 'mcr.microsft.com/**', which is of no upstream, allowed: images "),
        ("[[keep]]\nimages = []", "keep.0.images: found [], allowed: at least one image or glob"),
        ("[[keep]]", "keep.0.images: is missing"),
        ('[[keep]]\nimage = ["alpine"]\nimages = ["alpine"]',
         "keep.0.image: no such key (did you mean images?)"),
        ("[keep]\nimages = []", "keep: found a table, allowed: tables, each below [[keep]]"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_what_is_allowed(
    toml: str, line: str, write_toml: WriteToml
) -> None:
    file = write_toml(toml)
    (problem,) = problems(file)
    assert problem.startswith(f"{file}: {line}")


def test_credentials_of_clients_that_could_be_for_two_upstreams_are_a_mistake(
    write_toml: WriteToml,
) -> None:
    taking = "client_credentials = true\n"
    tables = {"quay.io": "", "gcr.io": "", "ghcr.io": 'hosts = ["ghcr.lan"]\n'}
    file = write_toml(
        "".join(f'[upstreams."{name}"]\n{taking}{hosts}' for name, hosts in tables.items())
    )
    (problem,) = problems(file)
    text = 'upstreams."gcr.io".client_credentials: found true without hosts, as quay.io'
    assert problem.startswith(f"{file}: {text}")


def test_all_mistakes_are_told_at_once(write_toml: WriteToml) -> None:
    file = write_toml(
        """
        [server]
        listen = "nope"
        [cache]
        max_size = "lots"
        [upstreams."a.lan"]
        [upstreams."quay.io"]
        default = true
        [upstreams."ghcr.io"]
        default = true
        """
    )
    assert [line.split(": ")[1] for line in problems(file)] == [
        "server.listen",
        "cache.max_size",
        'upstreams."a.lan".url',
        'upstreams."quay.io".default',
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'[server]\nlisten = "', "is not TOML: Unterminated string"),
        (b"[server]\nlisten\n", "(at line 2"),
        (b"[server]\n\n\xff", "is not TOML: no UTF-8 (at line 3)"),
    ],
)
def test_a_file_that_is_no_toml_is_one_line_with_the_place(
    content: bytes, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "mirror.toml"
    file.write_bytes(content)
    (problem,) = problems(file)
    assert problem.startswith(f"{file}: is not TOML: ")
    assert told in problem


def test_a_mistake_names_who_made_it(
    write_toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_toml('[server]\nlisten = "in file"\ndrain = "in file"\n[log]\nlevel = "in file"')
    monkeypatch.setenv("MIRROR_SERVER__LISTEN", "in environment")
    monkeypatch.setenv("MIRROR_SERVER__DRAIN", "in environment")
    lines = problems(file, {"server": {"listen": "in flag"}})
    assert [line.partition(": found")[0] for line in lines] == [
        "command line: server.listen",
        "environment: server.drain",
        f"{file}: log.level",
    ]


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        ("MIRROR_SERVER__LISTNE", "environment: server.listne: no such key (did you mean listen?)"),
        ("MIRROR_SEVER__LISTEN", "environment: sever: no such key (did you mean server?)"),
        ("MIRROR_LOG", "environment: log: found a value of type str, allowed: a table"),
        ("MIRROR_UPSTREAMS", "environment: upstreams: found a value of type str, allowed: a table"),
        (
            "MIRROR_UPSTREAMS__GCR_IO__CLIENT_CREDENTIALS",
            'environment: upstreams."gcr.io".client_credentials: found',
        ),
        ("MIRROR_UPSTREAMS__R_LAN__URL", "environment: upstreams.r_lan: found 'r_lan', allowed:"),
    ],
)
def test_the_environment_is_as_strict_as_the_file(
    variable: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "https://r.lan")
    (problem,) = problems()
    assert problem.startswith(line)


@pytest.mark.parametrize(
    "toml",
    [
        '[upstreams."r.lan"]\nurl = "https://me:hunter2@r.lan"',
        '[upstreams."r.lan"]\nurl = "https://me:/@hunter2@r.lan/v2"',
        '[fetch]\nproxy = "socks5://me:hunter2@p.lan"',
        '[upstreams."quay.io"]\npassword = ["hunter2"]',
        '[upstreams."quay.io"]\npasword = "hunter2"',
        '[upstreams."quay.io"]\npassword = "hunter2"',
        '[[upstreams]]\npassword = "hunter2"',
        'upstreams."quay.io" = "hunter2"',
    ],
)
def test_a_mistake_never_shows_a_secret(toml: str, write_toml: WriteToml) -> None:
    assert "hunter2" not in "\n".join(problems(write_toml(toml)))


def keys() -> list[tuple[str, str]]:
    """The header of a table, and a key in it: all that a file can have."""
    found = [("", section) for section in Config.model_fields]
    for section, field in Config.model_fields.items():
        table = field.annotation
        header = f"[{section}]"
        if section == "upstreams":
            header, table = '[upstreams."quay.io"]', UpstreamConfig
        elif not (isinstance(table, type) and issubclass(table, BaseModel)):
            header, table = f"[[{section}]]", get_args(table)[0]
        found += [(header, key) for key in table.model_fields]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("header", "key"), keys())
def test_a_value_of_any_kind_is_told_in_words_of_ours(
    header: str, key: str, write_toml: WriteToml
) -> None:
    kinds = ["true", "-1", "1.5", "1e300", "inf", "-inf", "nan", '""', '"x"', "[]", "[1]", "[[]]",
             "{}", "{ a = 1 }", "[{}]", "2020-01-01", "12:00:00", "9223372036854775807",
             "0x7f"]  # fmt: skip
    for kind in kinds:
        try:
            load(write_toml(f"{header}\n{key} = {kind}"))
        except UserError as error:
            for line in error.lines:
                assert not re.search(r"Input|[Uu]nable|valid|[Ff]ield|another value", line), line


@pytest.mark.parametrize(
    "value", ["9" * 5000, f"0x{'f' * 5000}", "18446744073709551615", "[" * 20_000, "[[1, 1]"]
)
def test_a_value_that_toml_does_not_have_is_one_line(value: str, write_toml: WriteToml) -> None:
    (problem,) = problems(write_toml(f"[server]\nlisten = {value}"))
    assert ": is not TOML: " in problem


def test_a_variable_that_is_nested_too_deeply_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIRROR_KEEP", "[" * 20_000)
    (problem,) = problems()
    assert problem.startswith("environment: keep: found '[[[")


names = st.text(max_size=8) | st.sampled_from(
    ["server", "listen", "cache", "upstreams", "docker.io", "url", "hosts", "default", "enabled"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


def told(tree: Tree) -> list[str]:
    try:
        load(None, tree)
    except UserError as error:
        return error.lines
    return []


@pytest.mark.long
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, values, max_size=4))
@example({"[key]": None})  # what pydantic calls the name of a table
def test_whatever_is_said_is_told_in_lines_or_right(tree: Tree) -> None:
    for problem in told(tree):
        assert len(problem.splitlines()) == 1
        assert problem.startswith(("command line: ", "default: upstreams: found no default"))
