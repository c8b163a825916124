"""Messages to people on Slack: what they say, what of it the eye gets as blocks, and the incoming webhook that takes them."""
