# What actions/checkout does, from REHEARSAL_REPOSITORY: an empty workspace, a detached commit for tags and commits, a branch for
# branches. As the real one does, a tag that started the run becomes a lightweight one, and
# with persist-credentials the token would stay readable in .git/config.
set -euo pipefail
cd "$GITHUB_WORKSPACE"
find . -mindepth 1 -maxdepth 1 -exec rm -rf {} +
git init --quiet --initial-branch=main .
git remote add origin "$REHEARSAL_REPOSITORY"
depth=()
if [ "$INPUT_FETCH_DEPTH" = 0 ]; then
  git fetch --quiet --no-tags origin '+refs/heads/*:refs/remotes/origin/*' '+refs/tags/*:refs/tags/*'
else
  depth=(--depth="$INPUT_FETCH_DEPTH")
fi
if [ "$INPUT_FETCH_TAGS" = true ]; then
  git fetch --quiet "${depth[@]}" origin '+refs/tags/*:refs/tags/*'
fi
ref=${INPUT_REF:-$GITHUB_REF}
if [ -z "$INPUT_REF" ]; then commit=$GITHUB_SHA; else commit=$ref; fi
case "$ref" in
  refs/heads/*) git fetch --quiet --no-tags "${depth[@]}" origin "+$ref:refs/remotes/origin/${ref#refs/heads/}" ;;
  refs/tags/*) git fetch --quiet --no-tags "${depth[@]}" origin "+$commit:$ref" 2>/dev/null \
    || git fetch --quiet --no-tags "${depth[@]}" origin "+$ref:$ref" ;;
  *) git fetch --quiet --no-tags "${depth[@]}" origin "$ref" && commit=$(git rev-parse "FETCH_HEAD^{commit}") ;;
esac
git checkout --quiet --force --detach "$commit"
if [ "$INPUT_PERSIST_CREDENTIALS" = true ]; then
  git config "http.$GITHUB_SERVER_URL/.extraheader" "AUTHORIZATION: basic kept-by-persist-credentials"
fi
git log -1 --format='checked out %H %s'
