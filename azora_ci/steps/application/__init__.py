"""Jobs that run what the application brings: audit, build, images. They hold no secret; other jobs judge what they report."""
