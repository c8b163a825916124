"""What the archive of records tells a person: its history, whether it is whole, an audit of a period."""
