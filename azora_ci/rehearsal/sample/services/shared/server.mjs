// One service: a health endpoint, and an answer from the database to everything else.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import pg from "pg";
import { faultOf } from "./fault.mjs";

const service = JSON.parse(readFileSync(new URL("./service.json", import.meta.url), "utf8"));
const version = process.env.VERSION ?? "0.0.0";
const faultFile = process.env.FAULT_FILE;
const started = (Date.now() / 1000 - process.uptime()).toFixed(3);
const DRAIN_LIMIT_MS = 10_000;
const pool = new pg.Pool({
  connectionString: process.env.DATABASE_URL ?? process.env.PROD_DATABASE_URL,
  max: 3,
  connectionTimeoutMillis: 5_000,
  idleTimeoutMillis: 30_000,
  application_name: `${service.id}-${version}`,
});
pool.on("error", (error) => console.error(`${service.id}: idle database connection: ${error.message}`));
let draining = false;

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function readFault(path, health) {
  if (!faultFile) return null;
  let text = null;
  try {
    text = readFileSync(faultFile, "utf8");
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
  }
  return faultOf(text, { service: service.id, version, path, health, chance: Math.random() });
}

function send(response, status, body, shown = version) {
  const html = typeof body === "string";
  const data = Buffer.from(html ? body : JSON.stringify(body));
  response.writeHead(status, {
    "content-type": html ? "text/html; charset=utf-8" : "application/json",
    "content-length": data.length,
    "x-azora-version": shown,
    "x-azora-service": service.id,
    "x-azora-started": started,
    ...(draining ? { connection: "close" } : {}),
  });
  response.end(data);
}

async function healthy(response, fault) {
  const shown = fault === "wrong-version" ? "0.0.1" : version;
  try {
    await pool.query("SELECT 1");
  } catch (error) {
    return send(response, 503, { status: "unhealthy", version: shown, reason: `database: ${error.code ?? "unreachable"}` }, shown);
  }
  if (fault === "unhealthy") return send(response, 503, { status: "unhealthy", version: shown, reason: "fault file" }, shown);
  return send(response, 200, { status: "healthy", version: shown, service: service.id }, shown);
}

async function work(path, response, fault) {
  const shown = fault === "wrong-version" ? "0.0.1" : version;
  // 20 to 50 ms as in a small real service: a query, and the wait for somebody else's answer.
  const [found] = await Promise.all([pool.query(service.query), pause(20 + Math.random() * 25)]);
  send(response, 200, { service: service.id, version: shown, path, items: found.rows }, shown);
}

async function answer(request, response) {
  const path = new URL(request.url, "http://localhost").pathname;
  const health = path === service.healthPath;
  const fault = readFault(path, health);
  if (fault) console.log(`${service.id} ${version}: ${path}: fault ${fault}`);
  if (fault === "exit") process.exit(70);
  if (fault === "hang") return;
  if (fault === "slow") await pause(2_000);
  if (fault === "error") return send(response, 500, { error: "fault file" });
  if (fault === "html") return send(response, 200, "<!doctype html><title>Maintenance</title><p>Back soon.</p>");
  await (health ? healthy(response, fault) : work(path, response, fault));
}

const server = createServer((request, response) => {
  request.resume();
  answer(request, response).catch((error) => {
    console.error(`${service.id}: ${request.method} ${request.url}: ${error.message}`);
    if (!response.headersSent) send(response, 500, { error: "internal" });
  });
});
// Longer than the edge keeps an idle connection, so that it is never this side that closes one in use.
server.keepAliveTimeout = 75_000;

function drain() {
  if (draining) return;
  draining = true;
  console.log(`${service.id} ${version}: draining`);
  server.close(async () => {
    await pool.end();
    process.exit(0);
  });
  setTimeout(() => process.exit(1), DRAIN_LIMIT_MS).unref();
}

process.on("SIGTERM", drain);
process.on("SIGINT", drain);
server.listen(Number(process.env.PORT ?? 8080), process.env.HOST ?? "127.0.0.1", () => {
  console.log(`${service.id} ${version}: listening on ${server.address().address}:${server.address().port}`);
});
