"""The two shell scripts of a database rollback, as text for one backup. Pure.

``restore_script`` never touches the live database: it restores into a new database and compares the number of rows. ``swap_script``
swaps the two databases by renaming, which takes a moment, or swaps them back. psql and aws take their secrets from the environment.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

RESTORE_SCRIPT = "restore-database.sh"
SWAP_SCRIPT = "swap-database.sh"


def bucket_and_key(location: str) -> tuple[str, str]:
    """Return bucket and key of a location ``s3://bucket/key``."""
    parts = urlsplit(location)
    return parts.netloc, parts.path.lstrip("/")


def one_line(location: str) -> str:
    """Return the guide's one-line restore, hardened: it stops at the first error and writes to the new database only."""
    return f'set -o pipefail; aws s3 cp {shlex.quote(location)} - | gunzip | psql -X -v ON_ERROR_STOP=1 -d "$RESTORED"'


_HEAD = """#!/usr/bin/env bash
# {purpose}
# Before: export PGHOST PGPORT PGUSER PGPASSWORD, and PGDATABASE = the name of the production database{more}.
set -euo pipefail
: "${{PGHOST:?}}" "${{PGUSER:?}}" "${{PGDATABASE:?is the name of the production database}}"
live=$PGDATABASE
restored=${{live}}_restore_{suffix}
maintenance=${{MAINTENANCE_DATABASE:-postgres}}
"""

_CREATE = """
# A half-restored database of an earlier try is dropped; the new one gets the owner, encoding and locale of the live one.
psql -X -q -v ON_ERROR_STOP=1 -v live="$live" -v restored="$restored" -d "$maintenance" <<'SQL'
DROP DATABASE IF EXISTS :"restored";
SELECT format('CREATE DATABASE %I TEMPLATE template0 OWNER %I ENCODING %L LC_COLLATE %L LC_CTYPE %L',
              :'restored', pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype)
  FROM pg_database WHERE datname = :'live' \\gexec
SQL
"""

_FILL = """
# A dump that was cut off restores without an error: its last line is what proves that it is whole.
gunzip -c "$file" | tail -n 20 | grep 'PostgreSQL database dump complete' > /dev/null ||
  { echo "$file is cut off: its last line is missing. Nothing was restored." >&2; exit 1; }
gunzip -c "$file" | psql -X -q -v ON_ERROR_STOP=1 -d "$restored" > /dev/null
"""

# Counts the tables that pg_dump dumps, as the backup's manifest does: without tables of extensions and of the system.
_COUNT = """
psql -X -q -v ON_ERROR_STOP=1 -d "$restored" <<'SQL'
DO $check$
DECLARE
  one record; n bigint; total bigint := 0; tables bigint := 0;
BEGIN
  FOR one IN SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
               AND NOT EXISTS (SELECT 1 FROM pg_depend d
                               WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') LOOP
    EXECUTE format('SELECT count(*) FROM ONLY %I.%I', one.nspname, one.relname) INTO n;
    total := total + n; tables := tables + 1;
  END LOOP;
  IF (tables, total) IS DISTINCT FROM (<tables>::bigint, <rows>::bigint) THEN
    RAISE EXCEPTION 'restored % tables with % rows, the backup has <tables> tables with <rows> rows', tables, total;
  END IF;
END $check$;
SQL
"""


def restore_script(backup: Mapping[str, Any], deployment_id: str) -> str:
    """Return the script that restores this backup (the record's ``database_backup``) into a new database on the same server."""
    bucket, key = bucket_and_key(backup["location"])
    version = f" --version-id {shlex.quote(backup['version_id'])}" if backup.get("version_id") else ""
    file = shlex.quote(key.rsplit("/", 1)[-1])
    text = _head(f"Restore {backup['backup_id']} into a new database. The live one is not touched.", deployment_id, "; AWS access")
    text += f"file={file}\n\n"
    text += f'aws s3api get-object --bucket {shlex.quote(bucket)} --key {shlex.quote(key)}{version} "$file" > /dev/null\n'
    if backup.get("sha256"):
        text += f'echo "{backup["sha256"]}  $file" | sha256sum --check\n'
    text += _CREATE + _FILL
    if isinstance(backup.get("tables"), int) and isinstance(backup.get("rows"), int):
        text += _COUNT.replace("<tables>", str(backup["tables"])).replace("<rows>", str(backup["rows"]))
    return text + f'\necho "Restored and compared: $restored. Look into it, then run {SWAP_SCRIPT}."\n'


_SWAP = """aside=${{live}}_before_rollback_{suffix}
incoming=$restored outgoing=$aside
if [ "${{1:-}}" = back ]; then incoming=$aside outgoing=$restored; fi

known=$(psql -X -q -A -t -v ON_ERROR_STOP=1 -v incoming="$incoming" -d "$maintenance" <<< \\
  "SELECT count(*) FROM pg_database WHERE datname = :'incoming'")
if [ "$known" != 1 ]; then echo "There is no database $incoming: run {restore} first." >&2; exit 1; fi

admit() {{ psql -X -q -v ON_ERROR_STOP=1 -v name="$1" -d "$maintenance" <<< 'ALTER DATABASE :"name" WITH ALLOW_CONNECTIONS true;'; }}
# Whatever goes wrong, the live database takes connections again.
trap 'admit "$live"' EXIT
psql -X -q -v ON_ERROR_STOP=1 -v live="$live" -v incoming="$incoming" -v outgoing="$outgoing" -d "$maintenance" <<'SQL'
ALTER DATABASE :"live" WITH ALLOW_CONNECTIONS false;
SELECT count(pg_terminate_backend(pid)) AS connections_closed FROM pg_stat_activity WHERE datname IN (:'live', :'incoming');
BEGIN;
ALTER DATABASE :"live" RENAME TO :"outgoing";
ALTER DATABASE :"incoming" RENAME TO :"live";
COMMIT;
SQL
admit "$outgoing"
echo "$live is now what was $incoming; what was live is kept as $outgoing."
"""


def swap_script(deployment_id: str) -> str:
    """Return the script that swaps the restored database with the live one by renaming; its argument ``back`` undoes that."""
    suffix = deployment_id.split("-", maxsplit=1)[0]
    head = _head("Swap the restored database with the live one by renaming; with the word back, undo that.", deployment_id, "")
    return head + _SWAP.format(suffix=suffix, restore=RESTORE_SCRIPT)


def _head(purpose: str, deployment_id: str, more: str) -> str:
    return _HEAD.format(purpose=purpose, suffix=deployment_id.split("-", maxsplit=1)[0], more=more)
