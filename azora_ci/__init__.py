"""azora-ci: a GitHub Actions production deployment in which every tick is evidence.

How to find things::

    context.py    composition root: a job's name -> settings, wired Job, boundary for errors and signals
    steps/        one module per job; each reads as the story of that job
    decisions     release, checks, health, rollout, migrations, rollback, record: no input or output, no clock, no environment
    edges         settings, actions, process, postgres, s3, github, registry, envoy, prisma, slack, targets/, backup/
    rehearsal/    the whole pipeline on a laptop; nothing imports it

Arrows run down only and are held by the import-linter contracts in ``pyproject.toml``.
"""

__version__ = "0.1.0"
