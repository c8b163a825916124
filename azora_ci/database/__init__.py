"""PostgreSQL: addresses and programs, private clusters, the tunnel, backups and their proof, migrations. Nothing about rollouts."""
