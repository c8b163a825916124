"""Environment variables as typed fields: what a variable is, how its text becomes a value, how all problems are reported at once.

A settings class is a frozen dataclass whose fields are made by ``variable``. ``load`` reports every missing or malformed
variable, by name, with what it is for and an example. Nothing here reads the environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, TypeVar

from azora_ci.core.documents import read_json
from azora_ci.core.errors import BadInputError
from azora_ci.core.release import Version

S = TypeVar("S")
DEPLOYMENT_ID = re.compile(r"[1-9][0-9]{0,11}-[0-9a-f]{6}")
GIT_SHA = re.compile(r"[0-9a-f]{40}")

# Variables that a child process never inherits: it gets a secret only when a caller passes it by name.
WITHHELD_PREFIX = "ACTIONS_"  # GitHub's own: tokens for OIDC, artifacts and caches, and the addresses that take them
WITHHELD = frozenset(
    {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "BACKUP_VERIFY_DATABASE_URL",
        "DATABASE_URL",
        "DOCKER_PASSWORD",
        "DOCKER_USERNAME",
        "GITHUB_TOKEN",
        "KUBECONFIG_DATA",
        "PGPASSWORD",
        "PROD_DATABASE_URL",
        "PROD_HOST",
        "PROD_JUMP_HOST",
        "PROD_KEY",
        "PROD_USER",
        "PULL_PASSWORD",
        "PULL_USERNAME",
        "SERVICE_SECRETS",
        "SLACK_WEBHOOK",
    }
)


class Secret:
    """A value that must not be shown: ``repr`` and ``str`` are redacted, only ``reveal()`` returns the value."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value itself. Hand it to a protocol, never to a log, a command line or an artifact."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Secret is not pickled")


@dataclass(frozen=True)
class Variable:
    """One environment variable: its name, purpose and example, and the parser that turns its text into a value."""

    name: str
    help: str
    example: str
    parse: Callable[[str], Any]
    default: str | None
    required: bool
    secret: bool


def variable(  # noqa: PLR0913 - the parts of a variable's documentation, all by keyword
    name: str,
    help_text: str,
    *,
    example: str,
    parse: Callable[[str], Any] = str,
    default: str | None = None,
    required: bool | None = None,
    secret: bool = False,
) -> Any:
    """Declare a field that is read from the environment variable ``name``.

    ``parse`` turns the text into the value and raises ValueError with a reason. A variable without ``default`` is required, unless
    ``required=False``: then the field is None when the variable is unset or empty. GitHub passes an unset secret as an empty
    text, so empty counts as unset.
    """
    is_required = default is None if required is None else required
    parser: Callable[[str], Any] = (lambda text: Secret(parse(text))) if secret else parse
    return field(metadata={"variable": Variable(name, help_text, example, parser, default, is_required, secret)})


def unparsed(settings_class: type[Any], name: str) -> Any:
    """Declare the field ``name`` of another settings class again, with its text as it is: what is wrong with it is found out later."""
    declaration = dict(declared_variables(settings_class))[name]
    return field(metadata={"variable": replace(declaration, parse=Secret if declaration.secret else str)})


def texts_of(settings_class: type[Any], settings: Any) -> dict[str, str]:
    """Return the variables of a settings class from a settings object that has its fields, as ``load`` takes them."""
    values = {declaration.name: getattr(settings, name) for name, declaration in declared_variables(settings_class)}
    texts = {name: value.reveal() if isinstance(value, Secret) else value for name, value in values.items() if value is not None}
    return {name: str(text).lower() if isinstance(text, bool) else str(text) for name, text in texts.items()}


def declared_variables(settings_class: type[Any]) -> Iterator[tuple[str, Variable]]:
    """Yield (field name, Variable) of a settings class, inherited ones included."""
    for settings_field in fields(settings_class):
        yield settings_field.name, _variable_of(settings_field)


def _variable_of(settings_field: Field[Any]) -> Variable:
    declaration = settings_field.metadata.get("variable")
    if not isinstance(declaration, Variable):
        raise TypeError(f"field {settings_field.name} was not made by variable()")
    assert settings_field.default is MISSING  # noqa: S101 - defaults live in the Variable, so that they pass through its parser
    return declaration


def load(settings_class: type[S], environ: Mapping[str, str]) -> S:
    """Return the settings that ``environ`` describes. Raises BadInputError that names every bad variable at once."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    refusals: list[BadInputError] = []
    for name, declaration in declared_variables(settings_class):
        text = environ.get(declaration.name, "") or declaration.default or ""
        if not text:
            if declaration.required:
                problems.append(f"{declaration.name} is not set: {declaration.help} (for example {declaration.example})")
            values[name] = None
            continue
        try:
            values[name] = declaration.parse(text)
        except ValueError as error:
            value_text = "its value (not shown)" if declaration.secret else repr(text)
            problems.append(f"{declaration.name}: {value_text} {error}: {declaration.help} (for example {declaration.example})")
        except BadInputError as error:
            refusals.append(error)
    if len(refusals) == 1 and not problems:
        raise refusals[0]
    problems += [f"{error.title}: {error.what}; {error.next_step}" for error in refusals]
    if problems:
        raise BadInputError(
            "Environment is not complete" if len(problems) == 1 else f"{len(problems)} environment variables need attention",
            what="\n".join(problems),
            where="environment variables of this step",
            next_step="set them in the workflow's env (secrets: repository settings > Environments), or export them to replay the step; "
            "--help lists them all",
        )
    return settings_class(**values)


# --- parsers: text -> value, ValueError with a reason -----------------------------------------------------------------


def whole_number(minimum: int = 0, maximum: int = 10**9) -> Callable[[str], int]:
    """Return a parser for a whole number within bounds."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,12}", text):
            raise ValueError("is not a whole number")
        if not minimum <= int(text) <= maximum:
            raise ValueError(f"is not between {minimum} and {maximum}")
        return int(text)

    return parse


def number(minimum: float = 0.0, maximum: float = 1e9) -> Callable[[str], float]:
    """Return a parser for a decimal number within bounds (no NaN, no infinity)."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,12})?", text):
            raise ValueError("is not a number")
        if not minimum <= float(text) <= maximum:
            raise ValueError(f"is not between {minimum:g} and {maximum:g}")
        return float(text)

    return parse


def checked_by(parse: Callable[[str], object]) -> Callable[[str], str]:
    """Return a parser that returns the text itself after ``parse`` accepted it."""

    def check(text: str) -> str:
        parse(text)
        return text

    return check


def truth(text: str) -> bool:
    """Return the bool that the text true or false names."""
    if text.lower() not in {"true", "false"}:
        raise ValueError("is neither true nor false")
    return text.lower() == "true"


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser for one of several words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"is none of {', '.join(choices)}")
        return text

    return parse


def one_line(most: int) -> Callable[[str], str]:
    """Return a parser for what a person wrote: one line of at most ``most`` visible characters, which is not blank."""

    def parse(text: str) -> str:
        line = text.strip()
        if not line:
            raise ValueError("is blank")
        if len(line) > most:
            raise ValueError(f"has {len(line)} characters, and at most {most} are taken")
        if not line.isprintable():
            raise ValueError("is not one line of visible characters")
        return line

    return parse


def texts_by_name(text: str) -> dict[str, str]:
    """Parse an object of JSON whose members are texts, as ``toJSON(vars)`` is one."""
    document = read_json(text)
    if not isinstance(document, dict) or not all(isinstance(value, str) for value in document.values()):
        raise ValueError("is no object of texts")
    return document


def deployment_id(text: str) -> str:
    """Parse ``<unix seconds>-<first 6 hex of the commit>``; it becomes part of object keys, file and artifact names."""
    if not DEPLOYMENT_ID.fullmatch(text):
        raise ValueError("is not <unix seconds>-<first 6 hex digits of the commit>")
    return text


def git_sha(text: str) -> str:
    """Parse a full commit id."""
    if not GIT_SHA.fullmatch(text):
        raise ValueError("is not a full commit id of 40 hex digits")
    return text


def release_version(text: str) -> str:
    """Parse a release version with a leading v."""
    return str(Version.parse(text))
