"""What a person types: ``python -m azora_ci …``, one file a command. Decides nothing: each asks the room that does."""
