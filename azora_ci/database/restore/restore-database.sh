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

# A dump that was cut off restores without an error: its last line is what proves that it is whole.
gunzip -c "$file" | tail -n 20 | grep 'PostgreSQL database dump complete' > /dev/null ||
  { echo "$file is cut off: its last line is missing. Nothing was restored." >&2; exit 1; }

# psql runs what follows a backslash as a command on this machine. pg_dump writes two, \restrict and \unrestrict; a dump with any
# other is refused. This prints the SQL without those two, read by the rules of psql's own lexer, and fails at what is refused.
judge() {
  LC_ALL=C awk -v strict="$1" '
    function refuse(why) { printf "line %d: %s: %s\n", NR, why, substr($0, 1, 80) > "/dev/stderr"; bad = 1; exit 1 }
    function doubt(why) { if (strict) refuse("only a psql of August 2025 or newer may read this: " why) }
    function eat(n) { s = substr(s, n + 1) }
    function word_of(w, then) {
      if (then == "\047" && w ~ /^[ebxn]$/) { escapes = w == "e"; return }
      if (w == "u" && s ~ /^.&["\047]/) return
      if (words < 4) first[++words] = w
      routine = first[1] == "create" && words > 1 && (first[2] ~ /^(function|procedure)$/ ||
        words > 3 && first[2] == "or" && first[3] == "replace" && first[4] ~ /^(function|procedure)$/)
      if (!routine || depth) return
      if (w == "begin" || w == "case" && begins) begins++
      else if (w == "end" && begins) begins--
    }
    function sql(  w, then, n) {
      if (match(s, /^[ \t\n\r\f\v]+/)) { eat(RLENGTH); return }
      if (s ~ /^\\/) {
        if (s ~ /^\\restrict [A-Za-z0-9]+\n$/ && !begun && own == "") own = substr(s, 11)
        else if (s ~ /^\\unrestrict [A-Za-z0-9]+\n$/ && !inside && own != "" && substr(s, 13) == own) { own = ""; over = 1 }
        else refuse("a command of psql is in the dump")
        $0 = substr($0, 1, length($0) + 1 - length(s)); s = ""; return
      }
      if (s ~ /^--/) { if (match(s, /[\r\n]/)) eat(RSTART - 1); return }
      if (s ~ /^\/\*/) { mode = "comment"; comments = 1; eat(2); return }
      if (over) refuse("SQL follows the last line of the dump")
      if (match(s, /^[A-Za-z_\200-\377][A-Za-z_0-9$\200-\377]*/)) {
        n = RLENGTH; w = tolower(substr(s, 1, n)); then = substr(s, n + 1, 1)
        if (w == "copy" && !inside) { mode = "copy"; header = ""; begun = 1; return }
        begun = inside = 1; word_of(w, then); if (!escapes) escaped = 0
        eat(n); return
      }
      begun = inside = 1
      if (match(s, /^[0-9][A-Za-z_0-9.\200-\377]*/)) {
        n = RLENGTH
        if (substr(s, 1, n) !~ /^[0-9.]+([eE][0-9]*)?$/ || substr(s, n + 1, 1) ~ /["$\047]/) refuse("a word or quote follows a number")
        escaped = 0; eat(n); return
      }
      if (match(s, /^\$([A-Za-z_\200-\377][A-Za-z_0-9\200-\377]*)?\$/)) {
        mode = "quote"; quote = substr(s, 1, RLENGTH); escaped = 0; eat(RLENGTH); return
      }
      if (s ~ /^\$[A-Za-z_\200-\377]/) refuse("a dollar quote does not begin as one")
      w = substr(s, 1, 1); eat(1)
      if (w == "\047" && escaped) refuse("two literals follow each other, the first with escapes")
      if (w == "\047" && escapes) { mode = "escapes"; escapes = 0; return }
      escaped = 0
      if (w == "\047" || w == "\"") { mode = "quote"; quote = w }
      else if (w == "(") depth++
      else if (w == ")" && depth) depth--
      else if (w == ";" && !depth && !begins) { inside = 0; words = 0 }
    }
    mode == "rows" {
      if ($0 == "\\.") mode = "sql"
      else if ($0 ~ /^\\\./) refuse("a row begins like the end of rows")
      print; next
    }
    {
      if ($0 ~ /[\200-\377]/) doubt("text that is not ASCII")
      s = $0 "\n"
      while (s != "") {
        if (mode == "copy") {
          header = header s; s = ""
          if (header ~ ("^COPY " name "\\." name "[ \n]*(\\((\"([^\"]|\"\")*\"|[^\";])*\\))?[ \n]* FROM stdin;\n$")) mode = "rows"
          else if (header ~ /^("([^"]|"")*"|\047([^\047]|\047\047)*\047|[^"\047;])*;/) refuse("this COPY is not the one of pg_dump")
        } else if (mode == "comment") {
          if (!match(s, /\/\*|\*\//)) { s = ""; continue }
          comments += substr(s, RSTART, 1) == "/" ? 1 : -1
          eat(RSTART + 1); if (!comments) mode = "sql"
        } else if (mode == "escapes") {
          if (!match(s, /\\.|\\\n|\047/)) { s = ""; continue }
          if (substr(s, RSTART, 1) == "\047") { mode = "sql"; escaped = 1 }
          eat(RSTART + RLENGTH - 1)
        } else if (mode == "quote") {
          if (!(place = index(s, quote))) { s = ""; continue }
          if (quote == "\047" && match(substr(s, 1, place - 1), /\\+$/) && RLENGTH % 2) doubt("a backslash directly before a quote")
          mode = "sql"; eat(place + length(quote) - 1)
        } else sql()
      }
      print
    }
    BEGIN { mode = "sql"; name = "(\"([^\"]|\"\")*\"|[^\".( \t\n\r\f\v]+)" }
    END { if (!bad && (mode != "sql" || inside)) refuse("the dump is cut off") }'
}

strict=0 word=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
if ! psql --help=commands | grep '\\restrict' > /dev/null; then
  strict=1 # the rules above alone protect then, and refuse what can be read in two ways
  echo "This psql is older than August 2025: it cannot refuse its own commands by itself. Update it." >&2
fi
gunzip -c "$file" | tr -d '\000' | cmp -s - <(gunzip -c "$file") ||
  { echo "$file holds NUL bytes, as no dump does. Nothing was restored." >&2; exit 1; }
gunzip -c "$file" | judge "$strict" > /dev/null || { echo "$file is refused. Nothing was restored." >&2; exit 1; }

# A half-restored database of an earlier try is dropped; the new one gets the owner, encoding and locale of the live one.
psql -X -q -v ON_ERROR_STOP=1 -v live="$live" -v restored="$restored" -d "$maintenance" <<'SQL'
DROP DATABASE IF EXISTS :"restored";
SELECT format('CREATE DATABASE %I TEMPLATE template0 OWNER %I ENCODING %L LC_COLLATE %L LC_CTYPE %L',
              :'restored', pg_get_userbyid(d.datdba), pg_encoding_to_char(d.encoding), d.datcollate, d.datctype)
       || CASE row ->> 'datlocprovider' WHEN 'i' THEN ' LOCALE_PROVIDER icu' WHEN 'b' THEN ' LOCALE_PROVIDER builtin'
                                        WHEN 'c' THEN ' LOCALE_PROVIDER libc' ELSE '' END
       || CASE row ->> 'datlocprovider' WHEN 'i' THEN ' ICU_LOCALE ' || quote_literal(coalesce(row ->> 'datlocale', row ->> 'daticulocale'))
                                        WHEN 'b' THEN ' BUILTIN_LOCALE ' || quote_literal(row ->> 'datlocale') ELSE '' END
       || coalesce(' ICU_RULES ' || quote_literal(row ->> 'daticurules'), '')
       || CASE t.spcname WHEN 'pg_default' THEN '' ELSE ' TABLESPACE ' || quote_ident(t.spcname) END
  FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace, to_jsonb(d) row WHERE d.datname = :'live' \gexec
SQL

# Amounts of money are written as the live database writes them.
money=$(psql -X -q -A -t -d "$live" -c 'SHOW lc_monetary' < /dev/null) || true
{
  if [ "$strict" = 0 ]; then printf '\\restrict %s\n' "$word"; fi
  gunzip -c "$file" | judge 0
} | PGOPTIONS="${PGOPTIONS:-} ${money:+-c lc_monetary=${money// /\\ }}" psql -X -q -v ON_ERROR_STOP=1 -d "$restored" > /dev/null

# The tables that pg_dump dumps are counted, as in the backup's manifest: of extensions' tables the rows that they name for dumps.
if [ -n "$tables" ] && [ -n "$rows" ]; then
psql -X -q -v ON_ERROR_STOP=1 -d "$restored" <<SQL
DO \$check\$
DECLARE
  one record; n bigint; total bigint := 0; tables bigint := 0;
BEGIN
  FOR one IN SELECT n.nspname, c.relname, 'ONLY ' AS only, '' AS condition FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
               AND NOT EXISTS (SELECT 1 FROM pg_depend d
                               WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
             UNION ALL
             SELECT n.nspname, c.relname, '', e.condition
             FROM pg_extension x CROSS JOIN unnest(x.extconfig, x.extcondition) AS e (oid, condition)
               JOIN pg_class c ON c.oid = e.oid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' LOOP
    EXECUTE format('SELECT count(*) FROM %s%I.%I %s', one.only, one.nspname, one.relname, one.condition) INTO n;
    total := total + n; tables := tables + 1;
  END LOOP;
  IF (tables, total) IS DISTINCT FROM ($tables::bigint, $rows::bigint) THEN
    RAISE EXCEPTION 'restored % tables with % rows, the backup has $tables tables with $rows rows', tables, total;
  END IF;
END \$check\$;
SQL
fi

# What belongs to the database itself is in no dump of it: comment, privileges, settings and limit come from the live one.
psql -X -q -v ON_ERROR_STOP=1 -v live="$live" -v restored="$restored" -d "$maintenance" > /dev/null <<'SQL'
SELECT format('COMMENT ON DATABASE %I IS %L', :'restored', shobj_description(oid, 'pg_database')),
       format('REVOKE ALL ON DATABASE %I FROM PUBLIC, %I', :'restored', pg_get_userbyid(datdba))
  FROM pg_database WHERE datname = :'live' \gexec
SELECT format('GRANT %s ON DATABASE %I TO %s', a.privilege_type, :'restored',
              CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
       || CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
  FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a WHERE d.datname = :'live' \gexec
-- A list of names, written as one literal, would be one name: such a value is set here first.
SELECT CASE WHEN list THEN format('SELECT pg_catalog.set_config(%L, %L, false)', name, value) END,
       format('ALTER %s SET %s %s', target, quoted, CASE WHEN list THEN 'FROM CURRENT' ELSE format('TO %L', value) END),
       CASE WHEN list THEN 'RESET ' || quoted END
  FROM (SELECT split_part(c, '=', 1) AS name, substr(c, strpos(c, '=') + 1) AS value,
               CASE WHEN r.rolname IS NULL THEN '' ELSE format('ROLE %I IN ', r.rolname) END || format('DATABASE %I', :'restored') AS target
          FROM pg_database d JOIN pg_db_role_setting s ON s.setdatabase = d.oid CROSS JOIN unnest(s.setconfig) c
               LEFT JOIN pg_roles r ON r.oid = s.setrole
         WHERE d.datname = :'live') setting,
       LATERAL (SELECT string_agg(quote_ident(part), '.' ORDER BY number)
                  FROM regexp_split_to_table(name, '\.') WITH ORDINALITY p (part, number)) q (quoted),
       LATERAL (SELECT name IN ('local_preload_libraries', 'search_path', 'session_preload_libraries', 'temp_tablespaces')) l (list) \gexec
SELECT format('ALTER DATABASE %I CONNECTION LIMIT %s', :'restored', datconnlimit) FROM pg_database WHERE datname = :'live' \gexec
SQL

described() {
  psql -X -q -A -t -v ON_ERROR_STOP=1 -v name="$1" -d "$maintenance" <<'SQL'
SELECT jsonb_pretty(to_jsonb(d) - '{oid,datname,datacl,datistemplate,datallowconn,dathasloginevt,datlastsysoid,datfrozenxid,datminmxid,
                                    datcollversion}'::text[]) FROM pg_database d WHERE datname = :'name';
SELECT 'comment', shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = :'name';
SELECT DISTINCT 'privilege', a.privilege_type, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END, a.is_grantable
  FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a WHERE d.datname = :'name' ORDER BY 1, 2, 3, 4;
SELECT 'setting', coalesce(r.rolname, ''), c
  FROM pg_database d JOIN pg_db_role_setting s ON s.setdatabase = d.oid CROSS JOIN unnest(s.setconfig) c
       LEFT JOIN pg_roles r ON r.oid = s.setrole WHERE d.datname = :'name' ORDER BY 1, 2, 3;
SQL
}
expected=$(described "$live")
found=$(described "$restored")
if ! diff <(echo "$expected") <(echo "$found") >&2; then
  echo "The rows are restored, but $restored itself is not as $live is: see above. Change it by hand before you swap." >&2
  exit 1
fi

echo "Restored and compared: $restored. Look into it, then run swap-database.sh."
