"""TODO."""

from __future__ import annotations

from urllib.parse import quote, unquote, urlsplit

SHORTEST_SECRET = 3  # shorter texts would mask half of every log
SHORTEST_IN_EVIDENCE = 8  # shorter secrets may be parts of words that evidence needs


def secrets_of_url(url: str) -> list[str]:
    """Return the secret texts of a URL: the whole URL and its password, percent-encoded and decoded."""
    try:
        password = urlsplit(url).password
    except ValueError:
        password = None
    forms = {url}
    if password:
        forms |= {password, unquote(password), quote(unquote(password), safe="")}
    return sorted(forms)
