"""Seconds of ``history --verify``, ``audit`` and ``site`` over a signed archive in a real S3 server, through the commands themselves."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import click
from click.testing import CliRunner

from azora_ci.cli.main import main
from azora_ci.clients.signing.signatures import Signatures
from azora_ci.rehearsal.standins.s3 import S3Server
from tests.support import deploy_config, years
from tests.support.signing import KeyFileSigner
from tests.support.stores import KEY_ID, SECRET, Stores

COMMANDS = {
    "history --verify": ["history", "--verify"],
    "audit, 25 in the sample": ["audit", "--from", "2020-01-01", "--to", "2099-12-31", "--out", "audit"],
    "site, every page": ["site", "--out", "site"],
    "site, again": ["site", "--out", "site"],
}


def run(records: int, *, as_json: bool) -> None:
    """Print the seconds of each command, beyond Python's start."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with S3Server(folder / "s3", keys=(KEY_ID, SECRET)) as server:
            stores = Stores(server)
            bucket, signer = stores.make_bucket(), KeyFileSigner(folder / "key.pem")
            years.keep(stores, bucket, years.chained(list(years.history(records)), bucket), signer)
            deploy_config.write(folder / "deploy.toml", backup={"location": f"s3://{bucket}/prod"})
            signed = classmethod(lambda cls, bucket, _signing: cls(bucket, signer))
            with patch.dict(os.environ, stores.environ), patch.object(Signatures, "of", signed):
                seconds = {text: _seconds(arguments, folder) for text, arguments in COMMANDS.items()}
    if as_json:
        click.echo(json.dumps({"records": records, "seconds": seconds}))
        return
    for text, value in seconds.items():
        click.echo(f"{text:<24} {value:6.1f} s for {records:,} signed records")


def _seconds(arguments: list[str], folder: Path) -> float:
    begun, before = time.monotonic(), Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(main, [*arguments, "--config", "deploy.toml"])
    finally:
        os.chdir(before)
    if result.exit_code:
        raise click.ClickException(f"{' '.join(arguments)}: {result.output[-1000:]}")
    return round(time.monotonic() - begun, 2)
