// Stands for a framework's build: one folder that runs by itself.
import { cpSync, mkdirSync, rmSync } from "node:fs";

rmSync(".next", { recursive: true, force: true });
mkdirSync(".next/standalone", { recursive: true });
cpSync("app/server.js", ".next/standalone/server.js");
