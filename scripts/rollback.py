"""Entry point of going back by hand; `--help` documents its environment."""

from azora_ci.context import main

if __name__ == "__main__":
    main("rollback")
