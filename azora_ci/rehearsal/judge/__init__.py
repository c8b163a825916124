"""What judges a rehearsal from outside: its load, evidence, demands and report; it imports nothing of what it judges."""
