"""What is locked in requirements/ is what setup.cfg asks for, and nothing else can take its place."""

import re
from configparser import ConfigParser
from typing import Final, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.process import ROOT

FILES: Final = ("server", "otel", "test")
PROJECT: Final = "aisopod-gateway"


class Locked(NamedTuple):
    """One version of a package."""

    version: str
    markers: str
    digests: list[str]


def locked(name: str) -> dict[str, Locked]:
    """What is in one of the files, by the names of the packages."""
    text = (ROOT / f"requirements/{name}.txt").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    found: dict[str, Locked] = {}
    for line in lines:
        pinned, *digests = line.split(" --hash=sha256:")
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9a-z.]+)(?: ; (.*?))? *", pinned)
        assert match is not None, line
        found[match[1]] = Locked(match[2], match[3] or "", [digest.strip() for digest in digests])
    return found


def wanted(extra: str) -> list[Requirement]:
    """What setup.cfg asks for with this extra."""
    config = ConfigParser(comment_prefixes="#")
    config.read(ROOT / "setup.cfg")
    asked = config["options.extras_require"][extra].split("\n")
    found = [Requirement(line) for line in [*config["options"]["install_requires"].split("\n"), *asked] if line]
    nested = [more for one in found if one.name == PROJECT for inner in one.extras for more in wanted(inner)]
    return [one for one in found if one.name != PROJECT] + nested


@pytest.mark.parametrize("name", FILES)
def test_everything_that_setup_cfg_asks_for_is_locked(name: str) -> None:
    """If not, run scripts/lock."""
    have = locked(name)
    for requirement in wanted(name):
        of = have[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(of.version, prereleases=True), requirement
        assert not of.markers, "it is needed everywhere"
    assert "setuptools" in have, "the project itself is installed without another host"


@pytest.mark.parametrize("name", FILES)
def test_everything_has_its_digests_and_comes_from_where_pip_looks(name: str) -> None:
    for package, of in locked(name).items():
        assert of.digests, package
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in of.digests), package
    text = (ROOT / f"requirements/{name}.txt").read_text()
    assert not re.search(r"https?:|file:|@|--(?!hash=)|/tmp", text)


@pytest.mark.parametrize("name", ["server", "otel"])
def test_what_runs_is_what_was_tested(name: str) -> None:
    tested = locked("test")
    for package, of in locked(name).items():
        assert of._replace(markers="") == tested[package]._replace(markers=""), package
