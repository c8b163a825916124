// A site with uploads, which must outlive a release.
const { existsSync } = require("node:fs");
const { createServer } = require("node:http");

const version = process.env.VERSION ?? "0.0.0";
const uploads = process.env.UPLOADS ?? "uploads";

const server = createServer((request, response) => {
  const health = new URL(request.url, "http://localhost").pathname === "/api/health";
  const body = JSON.stringify(health ? { status: "healthy", version } : { uploads: existsSync(uploads) });
  response.writeHead(200, { "content-type": "application/json" }).end(body);
});
server.keepAliveTimeout = 75_000;
server.listen(Number(process.env.PORT ?? 3000), process.env.HOSTNAME_TO_BIND);
process.on("SIGTERM", () => server.close(() => process.exit(0)));
