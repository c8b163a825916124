import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { productionPackages } from "../scripts/build.mjs";
import { faultOf } from "../services/shared/fault.mjs";

const request = { service: "auth_service", version: "1.1.0", path: "/auth/users", health: false, chance: 0.4 };

test("no fault file, no fault", () => {
  assert.equal(faultOf(null, request), null);
  assert.equal(faultOf("\n", request), null);
});

test("a fault is narrowed down by version, service, share and health", () => {
  assert.equal(faultOf("error", request), "error");
  assert.equal(faultOf('{"answer": "hang", "version": "1.1.0"}', request), "hang");
  assert.equal(faultOf('{"answer": "hang", "version": "1.0.0"}', request), null);
  assert.equal(faultOf('{"answer": "hang", "service": "api_gateway"}', request), null);
  assert.equal(faultOf('{"answer": "hang", "path": "/auth/users"}', request), "hang");
  assert.equal(faultOf('{"answer": "hang", "path": "/auth/health"}', request), null);
  assert.equal(faultOf('{"answer": "hang", "share": 0.5}', request), "hang");
  assert.equal(faultOf('{"answer": "hang", "share": 0.4}', request), null);
  assert.equal(faultOf('{"answer": "html", "health_only": true}', request), null);
  assert.throws(() => faultOf("explode", request), /none of/);
  assert.throws(() => faultOf('{"answer": "hang", "shares": 0.5}', request), /unknown shares/);
});

test("production packages hold pg and no development tool", () => {
  const packages = productionPackages(JSON.parse(readFileSync("package-lock.json", "utf8")));
  assert.ok(packages.includes("node_modules/pg"));
  assert.ok(!packages.includes("node_modules/prisma"));
});

test("every service has its own id and health path", () => {
  const names = readdirSync("services").filter((name) => name !== "shared");
  const services = names.map((name) => JSON.parse(readFileSync(`services/${name}/service.json`, "utf8")));
  assert.equal(new Set(services.map((one) => one.id)).size, 4);
  assert.equal(new Set(services.map((one) => one.healthPath)).size, 4);
});
