"""The report of a deployment: one HTML file for whoever asks what happened. Made of the record and of verified fragments only."""
