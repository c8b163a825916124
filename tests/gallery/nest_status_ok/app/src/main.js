// What a health module answers by default: a status that is not "healthy", and no version.
const { createServer } = require("node:http");

const server = createServer((request, response) => {
  const health = new URL(request.url, "http://localhost").pathname === "/health";
  const body = JSON.stringify(health ? { status: "ok", info: { db: { status: "up" } }, error: {}, details: {} } : { tickets: [] });
  response.writeHead(200, { "content-type": "application/json" }).end(body);
});
server.keepAliveTimeout = 75_000;
server.listen(Number(process.env.PORT ?? 3000));
process.on("SIGTERM", () => server.close(() => process.exit(0)));
