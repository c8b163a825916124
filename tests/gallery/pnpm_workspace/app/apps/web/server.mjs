// A small web server without packages: a health endpoint, and a page.
import { createServer } from "node:http";

const version = process.env.VERSION ?? "0.0.0";

const server = createServer((request, response) => {
  const health = new URL(request.url, "http://localhost").pathname === "/api/health";
  const body = JSON.stringify(health ? { status: "healthy", version } : { page: request.url });
  response.writeHead(200, { "content-type": "application/json" }).end(body);
});
server.keepAliveTimeout = 75_000; // longer than a proxy in front keeps an idle connection
server.listen(Number(process.env.PORT ?? 3000));
process.on("SIGTERM", () => server.close(() => process.exit(0)));
