"""Migrations of the application: what is applied and pending, what is risky in them, and Prisma, which applies them."""
