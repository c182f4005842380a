"""What fuzzing starts from, and what it found, is read within its limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .check import OWN_SCHEMA, SURVEY, check, seeds

SEEDS = tuple(seeds())
FINDINGS: tuple[bytes, ...] = ()
"""Inputs that once broke a limit; add each with what it broke."""


@pytest.mark.parametrize("data", SEEDS + FINDINGS)
def test_known_inputs(data: bytes) -> None:
    check(data)


@given(st.integers(OWN_SCHEMA, SURVEY + 4), st.binary(max_size=300))
def test_arbitrary_fields_of_every_survey(kind: int, body: bytes) -> None:
    check(bytes([kind]) + body)


@given(st.sampled_from(SEEDS), st.integers(0, 10_000), st.binary(max_size=8))
def test_damaged_seeds(seed: bytes, place: int, patch: bytes) -> None:
    place %= len(seed)
    check(seed[:place] + patch + seed[place + len(patch) :])
