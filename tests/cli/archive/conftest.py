"""A real archive, and the configuration and environment of the person who asks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.record.archive import Archive
from tests.support import deploy_config
from tests.support.stores import Stores


@pytest.fixture
def archive(s3_server: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    bucket = s3_server.make_bucket(object_lock=True)
    deploy_config.write(tmp_path / "deploy.toml", backup={"location": f"s3://{bucket}/prod"})
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    for name in ("DEPLOY_ENVIRONMENT", "PROD_HOST", "PROD_USER", "PROD_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return Archive(s3_server.open(bucket), "production")
