"""Migrations of the application: what is applied and pending, what is risky in them, and Prisma. When they run is a step's matter."""
