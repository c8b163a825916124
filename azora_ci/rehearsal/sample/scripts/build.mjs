// The production build: services/<name>/dist/ holds everything that one service needs to run. The same input gives the same bytes.

import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const shared = join(root, "services", "shared");

/** Return the packages that production needs, from the lock file: direct dependencies and theirs, no development tools. */
export function productionPackages(lock) {
  return Object.entries(lock.packages)
    .filter(([path, one]) => path.startsWith("node_modules/") && !one.dev && !one.optional && !one.devOptional)
    .map(([path]) => path)
    .sort();
}

function build(name, packages) {
  const source = join(root, "services", name);
  const target = join(source, "dist");
  rmSync(target, { recursive: true, force: true });
  mkdirSync(target);
  for (const file of readdirSync(shared)) cpSync(join(shared, file), join(target, file));
  cpSync(join(source, "service.json"), join(target, "service.json"));
  for (const path of packages) cpSync(join(root, path), join(target, path), { recursive: true });
  execFileSync(process.execPath, ["--check", join(target, "server.mjs")]);
  console.log(`built ${name}: ${packages.length} packages`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const packages = productionPackages(JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")));
  const missing = packages.filter((path) => !existsSync(join(root, path)));
  if (packages.length === 0 || missing.length > 0) {
    console.error(`not installed: ${missing.join(", ") || "everything"}; run npm ci`);
    process.exit(1);
  }
  for (const name of readdirSync(join(root, "services")).filter((name) => name !== "shared")) build(name, packages);
}
