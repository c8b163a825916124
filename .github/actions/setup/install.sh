#!/usr/bin/env bash
# Installs azora-ci's requirements, hashes checked, and exports AZORA_CI and AZORA_PYTHON to the steps that follow.
#
# Reads SETUP_FOLDER (this folder), SETUP_PYTHON (Python 3.11 or newer), SETUP_POSTGRESQL (a major version, or nothing),
# RUNNER_TOOL_CACHE or RUNNER_TEMP (where the virtual environment goes), GITHUB_ENV and GITHUB_OUTPUT. The environment is named after what it was made from: a runner that keeps
# its tool cache installs once; a new requirement, interpreter or checkout gets a new one.
set -euo pipefail

fail() {
  printf '::error title=azora-ci cannot be set up::%s\n' "$1"
  exit 2
}

azora_ci=$(cd -- "$SETUP_FOLDER/../../.." && pwd -P)
python=${SETUP_PYTHON:-python3}
cache=${RUNNER_TOOL_CACHE:-${RUNNER_TEMP:-}}
[ -f "$azora_ci/requirements.txt" ] || fail "$azora_ci/requirements.txt is not there: use the action as OWNER/azora-ci/.github/actions/setup@<commit>"
[ -n "$cache" ] || fail "neither RUNNER_TOOL_CACHE nor RUNNER_TEMP is set: a runner sets them"
command -v "$python" >/dev/null || fail "$python was not found: give the input python the path of Python 3.11 or newer"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || fail "$python is $("$python" --version 2>&1), azora-ci needs Python 3.11 or newer: give the input python another path"

# pg_dump refuses a newer server, and a backup is restored into its own major: a runner's image has one of them only.
major=${SETUP_POSTGRESQL:-}
pgdg=$(compgen -G '/usr/share/postgresql-common/pgdg/*.sh' | head -n 1 || true) # adds PostgreSQL's own package archive
[[ $major =~ ^([1-9][0-9])?$ ]] || fail "postgresql is '$major': give a major version such as 17"
if [ -n "$major" ] && [ ! -x "/usr/lib/postgresql/$major/bin/pg_dump" ]; then
  if [ -n "$pgdg" ]; then sudo "$pgdg" -y || fail "PostgreSQL's package archive could not be added: read the messages above"; fi
  sudo apt-get install -y --no-install-recommends "postgresql-$major" \
    || fail "postgresql-$major could not be installed: read the messages above"
fi

name=$( (cat "$azora_ci/requirements.txt"; "$python" -VV; printf '%s\n' "$azora_ci") | sha256sum | cut -c 1-32)
venv=$cache/azora-ci/$name
if [ ! -f "$venv/complete" ]; then
  mkdir -p "$cache/azora-ci"
  # Two jobs may share the cache: both install under a name of their own, the first rename wins.
  new=$(mktemp -d "$cache/azora-ci/new.XXXXXXXX")
  trap 'rm -rf "$new"' EXIT
  "$python" -m venv "$new" || fail "$python cannot make a virtual environment: install its venv package (Debian: python3-venv)"
  # Wheels only: a source archive would run its own code here, in jobs that hold secrets.
  "$new/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes --no-deps \
    --only-binary :all: -r "$azora_ci/requirements.txt" || fail "pip could not install $azora_ci/requirements.txt: read its message above"
  "$new/bin/python" - "$azora_ci" <<'PYTHON'
import pathlib, sys, sysconfig

pathlib.Path(sysconfig.get_path("purelib"), "azora-ci.pth").write_text(sys.argv[1] + "\n", encoding="utf-8")
PYTHON
  touch "$new/complete"
  mv -T "$new" "$venv" 2>/dev/null || [ -f "$venv/complete" ] || fail "$venv is in the way and not complete: remove it"
fi

"$venv/bin/python" -c 'import azora_ci.steps.runner' || fail "azora_ci cannot be imported from $venv: remove that folder and run again"
{
  printf 'AZORA_CI=%s\n' "$azora_ci"
  printf 'AZORA_PYTHON=%s\n' "$venv/bin/python"
} >>"$GITHUB_ENV"
printf 'python=%s\n' "$venv/bin/python" >>"$GITHUB_OUTPUT"
