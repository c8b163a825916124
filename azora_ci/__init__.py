"""azora-ci: a GitHub Actions production deployment in which every tick is evidence.

Seven floors of rooms, from the top down; a room imports only rooms below it (contract *Rooms* in ``pyproject.toml``)::

    rehearsal/                         the whole pipeline on a laptop
    cli/                               what a person types
    steps/                             one file a job
    gates/  rollout/  rollback/        may we begin, how far may we go, may we go back
    targets/  database/  record/       where versions run, PostgreSQL, evidence
    health/  clients/                  what services answer, one outside system each
    core/                              what every room stands on

``.github/CONTRIBUTING.md`` has the map, and where to start when something is to be added.
"""

__version__ = "0.1.0"
