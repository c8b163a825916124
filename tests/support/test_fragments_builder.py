"""The evidence that other tests build on is what the jobs' own schemas demand."""

from __future__ import annotations

import pytest

from azora_ci.core import schemas
from tests.support import fragments_builder as build


@pytest.mark.parametrize("job", build.complete())
def test_built_evidence_fits_the_schema_of_its_job(job):
    assert schemas.problems(build.fragment(job).document(), f"fragment-{job}") == []
