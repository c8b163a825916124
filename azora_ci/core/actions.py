"""Messages to the GitHub Actions runner: outputs, step summary, annotations, masks, and the wrapping of foreign output.

Protocol: "Workflow commands for GitHub Actions" and actions/toolkit ``file-command.ts``. Outside GitHub (no
``GITHUB_OUTPUT``) outputs go to standard output as ``name=value`` and the summary is left out.
"""

from __future__ import annotations

import re
import secrets
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from azora_ci.core.errors import BadInputError

SUMMARY_LIMIT_BYTES = 1024 * 1024  # GitHub drops a larger step summary with an error
ANNOTATION_LIMIT = 4096  # characters of one annotation that GitHub keeps
CUT_NOTICE = "\n\n_Cut here: the rest is in the job's artifact._\n"


def escape_data(text: str) -> str:
    """Escape the message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """Escape a property (such as the title) of a workflow command."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")


def harmless(text: str) -> str:
    """Return the text without workflow commands: ``::`` at a line's start (a carriage return ends a line, too) and ``##[`` are split."""
    return re.sub(r"(^|[\r\n])(\s*):(?=:)", r"\1\2: ", text).replace("##[", "## [")


class Actions:
    """The runner's file commands and workflow commands.

    ``output_file`` and ``summary_file`` are GitHub's files or None; ``stream`` is where commands and outputs are printed.
    """

    def __init__(
        self,
        *,
        output_file: Path | None = None,
        summary_file: Path | None = None,
        github: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._output_file = output_file
        self._summary_file = summary_file
        self._github = github
        self._stream = stream if stream is not None else sys.stdout
        self._lock = threading.RLock()
        self._foreign = 0
        self._token = ""
        self.outputs: dict[str, str] = {}

    def print(self, text: str = "") -> None:
        """Print this program's own line at once. Print foreign text inside ``foreign_output``."""
        with self._lock:
            self._stream.write(text + "\n")
            self._stream.flush()

    def say(self, text: str) -> None:
        """Print this program's own line that may quote a service or server; the quoted text cannot issue commands."""
        self.print(harmless(text) if self._github else text)

    def output(self, name: str, value: str | int) -> None:
        """Set an output of the step; ``value`` may hold newlines, which cannot inject a second output."""
        text = str(value)
        if not name.replace("-", "").replace("_", "").isalnum():
            raise BadInputError(
                "Bad output name",
                what=f"{name!r} is not a name of an output",
                where="a step's output",
                next_step="report this bug",
            )
        self.outputs[name] = text
        if self._output_file is None:
            self.print(f"{name}={text}")
            return
        delimiter = f"ghadelimiter_{uuid.uuid4()}"
        if delimiter in text or delimiter in name:
            raise BadInputError(
                "Output holds its delimiter",
                what=f"output {name} contains {delimiter}",
                where="GITHUB_OUTPUT",
                next_step="run again",
            )
        with self._lock, self._output_file.open("a", encoding="utf-8") as file:
            file.write(f"{name}<<{delimiter}\n{text}\n{delimiter}\n")

    def summary(self, markdown: str) -> None:
        """Append to the step summary; text beyond GitHub's limit of 1 MiB is replaced by a notice."""
        if self._summary_file is None:
            return
        with self._lock:
            used = self._summary_file.stat().st_size if self._summary_file.exists() else 0
            room = SUMMARY_LIMIT_BYTES - used - len(CUT_NOTICE.encode()) - 1
            data = (markdown.rstrip("\n") + "\n\n").encode()
            if len(data) > room:
                data = data[: max(0, room)].decode(errors="ignore").encode() + CUT_NOTICE.encode()
                if room <= 0:
                    return
            with self._summary_file.open("ab") as file:
                file.write(data)

    def _annotate(self, level: str, title: str, message: str, file: str | None = None, line: int | None = None) -> None:
        if self._github:
            place = f"file={escape_property(file)}," if file else ""
            place += f"line={line}," if line else ""
            self._command(f"::{level} {place}title={escape_property(title)}::{escape_data(message[:ANNOTATION_LIMIT])}")
        else:
            where = f" ({file}{f':{line}' if line else ''})" if file else ""
            self.print(f"{level.upper()}: {title}{where}\n{message}")

    def error(self, title: str, message: str, *, file: str | None = None, line: int | None = None) -> None:
        """Annotate the run, or a file of the repository, with an error."""
        self._annotate("error", title, message, file, line)

    def warning(self, title: str, message: str, *, file: str | None = None, line: int | None = None) -> None:
        """Annotate the run, or a file of the repository, with a warning."""
        self._annotate("warning", title, message, file, line)

    def notice(self, title: str, message: str, *, file: str | None = None, line: int | None = None) -> None:
        """Annotate the run, or a file of the repository, with a notice."""
        self._annotate("notice", title, message, file, line)

    def mask(self, secret: str) -> None:
        """Tell the runner to mask a secret, line by line, before anything else is printed."""
        if self._github:
            for line in secret.splitlines():
                if line.strip():
                    self._command(f"::add-mask::{escape_data(line)}")

    @contextmanager
    def group(self, title: str) -> Iterator[None]:
        """Fold the lines that are printed inside the block."""
        if self._github:
            self._command(f"::group::{escape_data(title)}")
        else:
            self.print(f"--- {title}")
        try:
            yield
        finally:
            if self._github:
                self._command("::endgroup::")

    @contextmanager
    def foreign_output(self) -> Iterator[None]:
        """Wrap output of other programs, so that it cannot issue workflow commands (``##[…]`` works anywhere in a line).

        Blocks may be nested and entered by several threads. A command of this class leaves the wrapping for one line. The token is
        random: a program that guesses it could switch commands on again.
        """
        with self._lock:
            self._foreign += 1
            if self._foreign == 1:
                self._stop_commands()
        try:
            yield
        finally:
            with self._lock:
                self._foreign -= 1
                if self._foreign == 0:
                    self._resume_commands()

    def _stop_commands(self) -> None:
        if self._github:
            self._token = secrets.token_hex(16)
            self.print(f"::stop-commands::{self._token}")

    def _resume_commands(self) -> None:
        if self._github:
            self.print(f"::{self._token}::")

    def _command(self, line: str) -> None:
        with self._lock:
            if self._foreign:
                self._resume_commands()
            self.print(line)
            if self._foreign:
                self._stop_commands()
