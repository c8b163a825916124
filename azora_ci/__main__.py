"""``python -m azora_ci``: commands of a person at a keyboard."""

from azora_ci.cli.main import main

if __name__ == "__main__":
    main()
