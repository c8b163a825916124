"""What tests share: worlds of real servers, builders of documents, and small helpers. No test of its own but of these."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
