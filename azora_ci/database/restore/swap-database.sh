#!/usr/bin/env bash
# Swap the restored database with the live one by renaming; with the word back, undo that.
# Before: export PGHOST PGPORT PGUSER PGPASSWORD, and PGDATABASE = the name of the production database.

# --- Values of this deployment -----------------------------------------------------------------------------------------
deployment_id=
# --- End of the values -------------------------------------------------------------------------------------------------

set -euo pipefail
: "${PGHOST:?}" "${PGUSER:?}" "${PGDATABASE:?is the name of the production database}"
live=$PGDATABASE
restored=${live}_restore_${deployment_id%%-*}
maintenance=${MAINTENANCE_DATABASE:-postgres}
aside=${live}_before_rollback_${deployment_id%%-*}
incoming=$restored outgoing=$aside
if [ "${1:-}" = back ]; then incoming=$aside outgoing=$restored; fi

known=$(psql -X -q -A -t -v ON_ERROR_STOP=1 -v incoming="$incoming" -d "$maintenance" <<< \
  "SELECT count(*) FROM pg_database WHERE datname = :'incoming'")
if [ "$known" != 1 ]; then echo "There is no database $incoming: run restore-database.sh first." >&2; exit 1; fi

admit() { psql -X -q -v ON_ERROR_STOP=1 -v name="$1" -d "$maintenance" <<< 'ALTER DATABASE :"name" WITH ALLOW_CONNECTIONS true;'; }
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
