// Works through a queue: no port, no route.
const version = process.env.VERSION ?? "0.0.0";
const timer = setInterval(() => console.log(`worker ${version}: nothing to do`), 5_000);
process.on("SIGTERM", () => clearInterval(timer));
