"""Tell which variables of a service hold secrets, by what they are called and by what they hold. Pure; in doubt it is a secret."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET_WORDS = re.compile(
    r"APIKEY|APIKEYS|AUTHORIZATION|BEARER|CREDENTIAL|CREDENTIALS|CREDS|DSN|KEY|KEYS|MNEMONIC|PASS|PASSCODE|PASSPHRASE|PASSWD|"
    r"PASSWORD|PASSWORDS|PAT|PEPPER|PW|PWD|SALT|SECRET|SECRETS|TOKEN|TOKENS|WEBHOOK|WEBHOOKS"
)
# Words that are one at the end of a name, and say little before another: REDIS_AUTH, OTP_SEED, PIN_1, not AUTH_PROVIDER, SESSION_STORE.
_SECRET_LAST = re.compile(r"AUTH|COOKIE|OTP|PIN|PRIVATE|SEED|SESSION")
_FORM = re.compile(r"[0-9]+|BASE|CODE|HEX|PEM|PHRASE|PROD|PRODUCTION|STRING|VALUE|WORDS")
# One word of two, without a joint: PGPASSWORD, JWTSECRET, SMTPPASS. Not COMPASS, BYPASS, MONKEY.
_SECRET_ENDING = re.compile(
    r"(?:PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|PWD|(?:API|SECRET|PRIVATE|ACCESS|MASTER|ENCRYPTION|SIGNING|APP|AUTH|LICENSE)KEY"
    r"|(?:SMTP|DB|MAIL|EMAIL|USER|ADMIN|ROOT|FTP|SSH|PG|REDIS|MYSQL|MONGO|MQTT|LDAP|AMQP|HTTP|AUTH|PROXY|SSL|KEYSTORE)PASS)$"
)
# What follows a secret's word and makes the variable speak about it: TOKEN_TTL, PASSWORD_MIN_LENGTH, PUBLIC_KEY_PATH.
_ABOUT = re.compile(
    r"AGE|ALG|ALGO|ALGORITHM|ALLOWED|ATTEMPTS|AUD|AUDIENCE|BYTES|CACHE|CASE|CHARS|COLUMN|COST|COUNT|DAY|DAYS|DELAY|DIGITS|DIR|"
    r"DIRECTORY|DISABLED|DURATION|ENABLED|ENCODING|ENDPOINT|EXPIRATION|EXPIRE|EXPIRES|EXPIRY|FIELD|FILE|FILENAME|FOLDER|FORMAT|"
    r"GRACE|HEADER|HOST|HOUR|HOURS|IN|INTERVAL|ISS|ISSUER|LEN|LENGTH|LIFETIME|LIMIT|LOCATION|MAX|MAXLENGTH|METHOD|MILLISECONDS|"
    r"MIN|MINLENGTH|MINUTE|MINUTES|MODE|MS|NAME|NAMESPACE|OPTIONAL|PATH|PATTERN|POLICY|PORT|PREFIX|PROVIDER|REGEX|REGION|REQUIRED|"
    r"RETRIES|ROTATION|ROUNDS|SCHEME|SCOPE|SCOPES|SEC|SECOND|SECONDS|SIZE|SKEW|STRATEGY|STRENGTH|SUFFIX|TIMEOUT|TTL|TYPE|URI|URL|"
    r"VALIDITY|VERSION|WINDOW"
)
_ABOUT_FIRST = re.compile(r"ALLOW|CHECK|DISABLE|ENABLE|HAS|IS|LIMIT|MAX|MIN|NUM|REQUIRE|REQUIRES|SHOW|SKIP|USE|VALIDATE")
# Keys that everybody may have, or that are columns: PUBLIC_KEY, STRIPE_PUBLISHABLE_KEY, PARTITION_KEY.
_OPEN_KEYS = re.compile(r"CACHE|FOREIGN|IDEMPOTENCY|PARTITION|PRIMARY|PUB|PUBLIC|PUBLISHABLE|ROUTING|SHARD|SITE|SORT")
_BUILT_IN = re.compile(r"(?:NEXT_PUBLIC|NUXT_PUBLIC|EXPO_PUBLIC|VITE|REACT_APP|GATSBY|PUBLIC)_")  # frameworks write them into pages
# Nobody's secret: nothing, a switch, the path of a file that holds one.
_HARMLESS = re.compile(
    r"(?i)(?:|true|false|yes|no|on|off|none|null|enabled|disabled|/(?:run|etc|var|secrets?|certs?)/[\w./-]+|\.{0,2}/[\w./-]+\.[a-z]{2,5})"
)
_WORKING_FOLDER = frozenset({"PWD", "OLDPWD", "INIT_CWD"})

_SECRET_VALUE = re.compile(
    r"""://[^/\s?#@:]*:[^/\s?#]*@                              # user:password@ in an address
      | ://[A-Za-z0-9_-]{16,}@                                 # a key as the user, as Sentry's addresses have it
      | (?i:(?:^|[?&;,\s])(?:user\s?)?(?:password|passwd|pwd|pass|secret|client_secret|token|auth_?token|access_?token|api_?key|access_?key
          |account_?key|shared_?access_?key|key|sig|signature|credential)\s*=\s*[^\s&;]+)
      | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
      | (?i:hooks\.slack\.com/|discord(?:app)?\.com/api/webhooks/|\.webhook\.office\.com/|hooks\.zapier\.com/|api\.telegram\.org/bot
          |/webhooks?/[A-Za-z0-9_-]*[0-9][A-Za-z0-9_/-]{11,}|/services/hooks?/)
      | ^(?:Basic|Bearer)\ \S+
      | \b(?:sk|rk)_(?:live|test)_|\bwhsec_|\bgh[opsur]_[A-Za-z0-9]{20}|\bgithub_pat_|\bglpat-|\bxox[abeprs]-|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b
      | \bAIza[A-Za-z0-9_-]{20}|\bSG\.[A-Za-z0-9_-]{10}|\bnpm_[A-Za-z0-9]{20}|\beyJ[A-Za-z0-9_-]{8,}\.|\bdop_v1_|\bshpat_
      | \bsk-[A-Za-z0-9_-]{16}|\bre_[A-Za-z0-9]{16}|\bpypi-[A-Za-z0-9]{16}|\bhf_[A-Za-z0-9]{20}|\bAGE-SECRET-KEY-""",
    re.VERBOSE,
)
_RANDOM = re.compile(r"[A-Za-z0-9+/_-]{20,}={0,2}")
_PUBLIC_VALUE = re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|pk_(?:live|test)_\w+")


def is_secret(name: str, value: str | None = None) -> bool:
    """Say whether a variable holds a secret. ``value``: what it holds; None when nobody knows."""
    if value is None:
        return _names_one(name)
    return holds_secret(value) or (_names_one(name) and not _HARMLESS.fullmatch(value))


def holds_secret(value: str) -> bool:
    """Say whether a value is a credential, or holds one, whatever it is called."""
    return bool(_SECRET_VALUE.search(value)) or _is_random(value)


def _names_one(name: str) -> bool:
    if name in _WORKING_FOLDER or _BUILT_IN.match(name.upper()):
        return False
    words = [word.upper() for word in _WORDS.findall(name)]
    position = next((index for index in reversed(range(len(words))) if _is_word(words, index)), None)
    if position is None or _ABOUT_FIRST.fullmatch(words[0]) or (position and _ABOUT_FIRST.fullmatch(words[position - 1])):
        return False
    word, before, after = words[position], words[:position], words[position + 1 :]
    if word in {"WEBHOOK", "WEBHOOKS"}:
        return not after or after[-1] in {"URL", "URI", "ADDRESS"}
    if word in {"KEY", "KEYS"} and before and _OPEN_KEYS.fullmatch(before[-1]):
        return False
    return not (after and _ABOUT.fullmatch(after[-1]))


def _is_word(words: Sequence[str], index: int) -> bool:
    word = words[index]
    if _SECRET_LAST.fullmatch(word):
        return all(_FORM.fullmatch(after) for after in words[index + 1 :])
    return bool(_SECRET_WORDS.fullmatch(word)) or (word not in _WORKING_FOLDER and bool(_SECRET_ENDING.search(word)))


def _is_random(value: str) -> bool:
    """Say whether a value looks drawn: one text of letters and digits mixed, of more than 3.4 bits a character."""
    if not _RANDOM.fullmatch(value) or _PUBLIC_VALUE.fullmatch(value) or value.startswith("/"):
        return False
    if not (re.search(r"[0-9]", value) and re.search(r"[A-Za-z]", value)):
        return False
    words = re.split(r"[-_/]", value)
    if all(re.fullmatch(r"[A-Za-z]+[0-9]{0,4}|[0-9]{1,4}|", word) for word in words):
        return False  # a name, such as orders-eu-west-1-v2
    counted = Counter(value)
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counted.values()) > 3.4
