"""Signatures beside documents in the bucket: who signs, what is signed, how anybody verifies it. What documents say belongs above."""
