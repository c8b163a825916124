// Sends reminders; two of it would send each one twice.
const version = process.env.VERSION ?? "0.0.0";
const timer = setInterval(() => console.log(`scheduler ${version}: nothing is due`), 1_000);
process.on("SIGTERM", () => clearInterval(timer));
