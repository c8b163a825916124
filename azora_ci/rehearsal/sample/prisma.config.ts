import { PrismaPg } from "@prisma/adapter-pg";
import { defineConfig } from "prisma/config";

// The engine in WebAssembly limits its wait for the advisory lock by a timer of ten seconds that it never clears, so that every
// command would last that long. An unreferenced timer still ends the wait, and does not keep a finished command alive.
const LOCK_WAIT_MS = 10_000;
const setTimer = globalThis.setTimeout;
globalThis.setTimeout = ((callback: () => void, delay?: number, ...rest: unknown[]) => {
  const timer = setTimer(callback, delay, ...rest);
  return delay === LOCK_WAIT_MS ? timer.unref() : timer;
}) as typeof globalThis.setTimeout;

// The engine in JavaScript and WebAssembly: nothing native is downloaded when Prisma is installed or run.
export default defineConfig({
  schema: "prisma/schema.prisma",
  experimental: { adapter: true },
  engine: "js",
  adapter: async () => new PrismaPg({ connectionString: process.env.DATABASE_URL, allowExitOnIdle: true }),
});
