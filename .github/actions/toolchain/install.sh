#!/usr/bin/env bash
# Installs one package manager in one exact version and puts it at the front of the PATH of the steps that follow.
#
# Reads TOOLCHAIN_MANAGER (npm, pnpm, yarn or bun), TOOLCHAIN_VERSION, TOOLCHAIN_PACKAGE (what it is called in the registry),
# RUNNER_TEMP and GITHUB_PATH. npm checks the tarball against the integrity that the registry names; no install script runs.
set -euo pipefail

fail() {
  printf '::error title=The toolchain cannot be set up::%s\n' "$1"
  exit 2
}

manager=$TOOLCHAIN_MANAGER
version=$TOOLCHAIN_VERSION
[ -n "${RUNNER_TEMP:-}" ] && [ -n "${GITHUB_PATH:-}" ] || fail "RUNNER_TEMP and GITHUB_PATH are not set: a runner sets them"
command -v npm >/dev/null || fail "npm was not found, which installs $manager: name toolchain.node in the configuration"

folder=$RUNNER_TEMP/azora-toolchain
mkdir -p "$folder/empty"
cd "$folder/empty" # a .npmrc of the application has no say here
npm install --global --ignore-scripts --no-audit --no-fund --prefix "$folder" "$TOOLCHAIN_PACKAGE" \
  || fail "npm could not install $TOOLCHAIN_PACKAGE: read its message above, and correct toolchain.package_manager"

# Bun and newer pnpm are native programs in a package for each platform. Their install scripts, which do not run here, put the
# right one in place of a stub.
case $(uname -m) in
  x86_64) arch=x64 ;;
  aarch64 | arm64) arch=arm64 ;;
  *) arch=unknown ;;
esac
modules=$folder/lib/node_modules/$manager/node_modules
native=
if [ "$manager" = pnpm ] && [ -f "$modules/@pnpm/exe.linux-$arch/pnpm" ]; then
  native=$modules/@pnpm/exe.linux-$arch/pnpm
elif [ "$manager" = bun ]; then
  platform=bun-linux-${arch/arm64/aarch64}
  if [ "$arch" = x64 ] && ! grep -qw avx2 /proc/cpuinfo; then platform=$platform-baseline; fi
  native=$modules/@oven/$platform/bin/bun
  [ -f "$native" ] || fail "$TOOLCHAIN_PACKAGE has no program for this machine, $platform"
fi
if [ -n "$native" ]; then
  chmod +x "$native"
  ln -sfn "$native" "$folder/bin/$manager"
fi

# It is not started to ask for its version: this action stands in jobs that hold secrets, too, where only isolated commands run it.
[ -x "$folder/bin/$manager" ] || fail "$TOOLCHAIN_PACKAGE has no program $manager"
observed=$(node -p 'require(process.argv[1]).version' "$folder/lib/node_modules/${TOOLCHAIN_PACKAGE%@*}/package.json") \
  || fail "$TOOLCHAIN_PACKAGE does not say its version: read the message above"
[ "$observed" = "$version" ] || fail "$manager says that it is $observed, not $version"
printf '%s\n' "$folder/bin" >>"$GITHUB_PATH"
printf '✓ %s %s from %s\n' "$manager" "$observed" "$folder/bin"
