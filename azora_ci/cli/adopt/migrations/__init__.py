"""How the repository that adopts migrates its database: by Prisma, by another tool, or by images at their own start."""
