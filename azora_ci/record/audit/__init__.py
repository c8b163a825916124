"""What an auditor is given: a script that verifies records without this package, a sample of the changes and what shows each of them."""
