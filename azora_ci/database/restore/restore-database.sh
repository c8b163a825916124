#!/usr/bin/env bash
# Restore the backup that is named below into a new database. The live one is not touched.
# Before: export PGHOST PGPORT PGUSER PGPASSWORD, and PGDATABASE = the name of the production database; AWS access.

# --- Values of this deployment -----------------------------------------------------------------------------------------
deployment_id=
bucket=
key=
version_id= # of the object; empty: the bucket keeps no versions
sha256= # of the object; empty: not known, and not compared
tables= # in the backup; empty: not known, and not compared
rows= # in these tables
# --- End of the values -------------------------------------------------------------------------------------------------

set -euo pipefail
: "${PGHOST:?}" "${PGUSER:?}" "${PGDATABASE:?is the name of the production database}"
live=$PGDATABASE
restored=${live}_restore_${deployment_id%%-*}
maintenance=${MAINTENANCE_DATABASE:-postgres}
file=${key##*/}

aws s3api get-object --bucket "$bucket" --key "$key" ${version_id:+--version-id "$version_id"} "$file" > /dev/null
if [ -n "$sha256" ]; then echo "$sha256  $file" | sha256sum --check; fi

# A half-restored database of an earlier try is dropped; the new one gets the owner, encoding and locale of the live one.
psql -X -q -v ON_ERROR_STOP=1 -v live="$live" -v restored="$restored" -d "$maintenance" <<'SQL'
DROP DATABASE IF EXISTS :"restored";
SELECT format('CREATE DATABASE %I TEMPLATE template0 OWNER %I ENCODING %L LC_COLLATE %L LC_CTYPE %L',
              :'restored', pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype)
  FROM pg_database WHERE datname = :'live' \gexec
SQL

# A dump that was cut off restores without an error: its last line is what proves that it is whole.
gunzip -c "$file" | tail -n 20 | grep 'PostgreSQL database dump complete' > /dev/null ||
  { echo "$file is cut off: its last line is missing. Nothing was restored." >&2; exit 1; }
gunzip -c "$file" | psql -X -q -v ON_ERROR_STOP=1 -d "$restored" > /dev/null

# The tables that pg_dump dumps are counted, as in the backup's manifest: without tables of extensions and of the system.
if [ -n "$tables" ] && [ -n "$rows" ]; then
psql -X -q -v ON_ERROR_STOP=1 -d "$restored" <<SQL
DO \$check\$
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
  IF (tables, total) IS DISTINCT FROM ($tables::bigint, $rows::bigint) THEN
    RAISE EXCEPTION 'restored % tables with % rows, the backup has $tables tables with $rows rows', tables, total;
  END IF;
END \$check\$;
SQL
fi

echo "Restored and compared: $restored. Look into it, then run swap-database.sh."
