// Checks the lock file, not a list of vulnerabilities: every package is pinned by a SHA-512, and what is installed is what is pinned.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));

/** Return what is wrong with a lock file, one line each. `installed(path)` gives an installed version or null. */
export function problemsOf(lock, installed) {
  const entries = Object.entries(lock.packages).filter(([path]) => path !== "");
  if (entries.length === 0) return ["the lock file names no package"];
  return entries.flatMap(([path, one]) => {
    const found = installed(path);
    return [
      ...(/^sha512-[A-Za-z0-9+/]{86}==$/.test(one.integrity ?? "") ? [] : [`${path}: no SHA-512`]),
      ...(found === null || found === one.version ? [] : [`${path}: ${found} is installed, ${one.version} is pinned`]),
    ];
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
  const problems = problemsOf(lock, (path) => {
    const file = join(root, path, "package.json");
    return existsSync(file) ? JSON.parse(readFileSync(file, "utf8")).version : null;
  });
  for (const problem of problems) console.error(problem);
  console.log(`${Object.keys(lock.packages).length - 1} packages, ${problems.length} problems`);
  process.exit(problems.length > 0 ? 1 : 0);
}
