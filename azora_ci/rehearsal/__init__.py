"""The whole pipeline on a laptop: real stand-ins, the real workflow file, act. Nothing imports this package."""
