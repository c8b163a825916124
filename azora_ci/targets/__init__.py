"""Where versions run and how traffic reaches them: one Protocol, its kinds, and what kinds share. Decides nothing about a rollout."""
