"""Target ``docker_hosts``: production hosts over SSH, services in containers behind each host's edge. Knows no other kind of target."""
