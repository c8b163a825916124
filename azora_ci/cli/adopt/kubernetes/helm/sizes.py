"""How large a template's values are, those in them counted as often as they stand there. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from azora_ci.cli.adopt.kubernetes.helm.syntax import TemplateError

LARGEST = 512 * 1024  # characters of a text
_VALUE = 8 * LARGEST  # characters and values in one list or mapping, the lists in it counted through


@dataclass
class Sizes:
    """Sizes of values, each list and mapping counted once. ``indent``: characters more for each level that a value lies in."""

    indent: int = 0
    _known: dict[int, tuple[Any, int]] = field(default_factory=dict)  # by id: the value stays, so that its id stays its own

    def of(self, value: Any, depth: int = 1) -> int:
        """Return the size of a value in characters and values. Raises TemplateError for one that is too large."""
        if not isinstance(value, dict | list):
            return 1 + (len(value) if isinstance(value, str) else 0)
        if id(value) in self._known and not self.indent:
            return self._known[id(value)][1]
        size = 2
        for item in value.items() if isinstance(value, dict) else enumerate(value):
            size += self.indent * depth + self.of(item[1], depth + 1) + (len(str(item[0])) if isinstance(value, dict) else 0)
            if size > _VALUE:
                raise TemplateError(f"it makes a value of more than {_VALUE} characters and values")
        self._known[id(value)] = value, size
        return size
