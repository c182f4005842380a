"""The versions that were tested together are those that the package asks for."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTED = {
    canonicalize_name(name): version
    for name, _, version in (
        line.partition("==")
        for line in (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
}
NOT_IN_TEST = {"fsps", "atheris", "pip-audit"}
"""Extras of their own, which need what the tests can do without."""


def test_every_dependency_has_a_tested_version_within_its_bounds() -> None:
    optional = PROJECT["optional-dependencies"].values()
    requirements = [*PROJECT["dependencies"], *(text for extra in optional for text in extra)]
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        if name not in NOT_IN_TEST | {canonicalize_name(PROJECT["name"])}:
            assert requirement.specifier.contains(TESTED[name], prereleases=True), name
