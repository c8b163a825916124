"""SSH: one connection per host that forwards what is behind it, the credentials and host keys for it. What runs on hosts is a target's."""
