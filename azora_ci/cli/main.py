"""The command line ``python -m azora_ci``: one group, and the commands of this room in it."""

from __future__ import annotations

import click

from azora_ci import __version__
from azora_ci.cli.adopt.command import adopt
from azora_ci.cli.archive.audit import audit
from azora_ci.cli.archive.history import history
from azora_ci.cli.archive.site import site
from azora_ci.cli.archive.verify import verify
from azora_ci.cli.clean import clean
from azora_ci.cli.doctor import doctor
from azora_ci.cli.edge.command import edge
from azora_ci.cli.health import health
from azora_ci.cli.lock import lock
from azora_ci.cli.migrations import migrations
from azora_ci.cli.rollback import rollback
from azora_ci.cli.toolchain import toolchain


@click.group()
@click.version_option(__version__, prog_name="azora-ci")
def main() -> None:
    """Production deployments in which every tick is evidence."""


for command in (adopt, rollback, lock, clean, edge, doctor, health, history, migrations, verify, audit, site, toolchain):
    main.add_command(command)
