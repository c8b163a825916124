"""Which kind a compose service is, with the reason: it takes requests, works beside, or runs once per deployment. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from azora_ci.cli.adopt.compose.found import JOB, WEB, WORKER

_WORKS = re.compile(
    r"(?:^|[^a-z])(?:workers?|consumers?|queues?|jobs?|processors?|sidekiq|celery|listeners?|background|bull|daemon)(?:$|[^a-z])"
)
_SCHEDULES = re.compile(r"(?:^|[^a-z])(?:schedulers?|cron|crond|crontab|beat|clock|timer)(?:$|[^a-z])")
_RUNS_SCHEDULES = re.compile(r"\b(?:beat|crond?|scheduler|supercronic|clockwork|schedule:(?:work|run))\b|\bcelery\b.*\sworker\b.*\s-\w*B")
_PREPARES = re.compile(r"(?:^|[^a-z])(?:seed(?:er|s|ing)?|init|initiali[sz]er?|setup|bootstrap|migrat\w*)(?:$|[^a-z])")


@dataclass(frozen=True)
class Signs:
    """What decides: name and command as texts; where ports were found; whether it answers HTTP; ``restart``; who waits for its end."""

    name: str
    command: str
    published: bool = False  # ports, expose, PORT or labels of a proxy
    exposed: bool = False  # EXPOSE of its Dockerfile
    asked: bool = False  # by a health check over HTTP
    called: bool = False  # by another service's environment
    restart: str | None = None  # no, always, unless-stopped, on-failure
    awaited_by: Sequence[str] = ()
    alone: bool = False  # no other service is built here


@dataclass(frozen=True)
class Kind:
    """A kind, why, and whether a person has to look (``mark``: what at). ``when`` is a job's moment."""

    kind: str
    source: str = ""
    mark: str | None = None
    when: str | None = None
    when_source: str = ""
    when_mark: str | None = None
    singleton: bool = False


def decide(signs: Signs) -> Kind:
    """Return the kind of a service."""
    takes_requests = signs.published or signs.asked
    if signs.awaited_by:
        waiting = f"{', '.join(signs.awaited_by)} waits until it has completed"
        return Kind(JOB, "depends_on: service_completed_successfully", when="before-rollout", when_source=waiting)
    stays = signs.restart in {"always", "unless-stopped"} or signs.called or signs.exposed or signs.alone
    prepares = _PREPARES.search(_words(signs.name)) and not stays
    if (signs.restart == "no" or prepares) and not takes_requests:
        source = 'restart: "no"' if signs.restart == "no" else "its name, and nothing restarts it"
        return Kind(JOB, source, when="before-rollout", when_mark="before-rollout or after-rollout")
    if takes_requests:
        return Kind(WEB)
    if signs.called:
        return Kind(WEB, "another service calls it")
    if is_scheduler(signs.name) or _RUNS_SCHEDULES.search(signs.command):
        return Kind(WORKER, "it is called a scheduler and has no port", singleton=True)
    if signs.command or _WORKS.search(_words(signs.name)):
        return Kind(WORKER, "it has no port" if not signs.command else "it has a command of its own and no port")
    if signs.exposed or signs.alone:
        return Kind(WEB, "EXPOSE of its Dockerfile" if signs.exposed else "")
    return Kind(WORKER, "", "no port was found: worker, or web with route_prefix, health_path, public_health_url and port")


def is_scheduler(name: str) -> bool:
    """Say whether a service is called like one of which two may not run at once."""
    return bool(_SCHEDULES.search(_words(name)))


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
