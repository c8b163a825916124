"""May a release enter production now: calendar, staging, and the emergency that passes both."""
