"""Target ``local_processes``: services are processes on loopback, for rehearsals and tests. Knows no other kind of target."""
