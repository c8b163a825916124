"""The pending migrations, tried on a copy of production before production sees them: what they took there, and what they left.

Rows of production are in that copy. What the migrate command prints, and what the server says with values, stays there and goes with it.
"""
