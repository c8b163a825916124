import { PrismaPg } from "@prisma/adapter-pg";
import { defineConfig } from "prisma/config";

// This engine never clears the timer that ends its wait for a lock after ten seconds; unreferenced, it keeps no finished command alive.
const setTimer = globalThis.setTimeout;
globalThis.setTimeout = ((callback: () => void, delay?: number) => {
  const timer = setTimer(callback, delay);
  return delay === 10_000 ? timer.unref() : timer;
}) as typeof globalThis.setTimeout;

export default defineConfig({
  schema: "prisma/schema.prisma",
  experimental: { adapter: true },
  engine: "js",
  adapter: async () => new PrismaPg({ connectionString: process.env.DATABASE_URL, allowExitOnIdle: true }),
});
