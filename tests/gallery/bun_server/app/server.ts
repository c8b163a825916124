const version = process.env.VERSION ?? "0.0.0";

const server = Bun.serve({
  port: Number(process.env.PORT ?? 3000),
  fetch(request) {
    const path = new URL(request.url).pathname;
    return Response.json(path === "/health" ? { status: "healthy", version } : { page: path });
  },
});
process.on("SIGTERM", async () => {
  await server.stop();
  process.exit(0);
});
