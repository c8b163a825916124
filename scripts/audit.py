"""Entry point of the job audit; `--help` documents its environment."""

import azora_ci.core.hidden
from azora_ci.steps.runner import main

if __name__ == "__main__":
    main("audit")
