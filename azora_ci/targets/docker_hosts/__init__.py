"""Target ``docker_hosts``: production hosts over SSH, whose services are containers behind an edge and a guard of each host."""
