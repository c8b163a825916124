"""The whole pipeline on a laptop: the world that it runs in, its runs and scenarios. Nothing that production needs belongs here."""
