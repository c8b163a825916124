"""Target ``local_processes``: services are processes on loopback of this machine, behind an edge here; for rehearsals and tests."""
