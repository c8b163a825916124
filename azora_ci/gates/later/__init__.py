"""Gates that later jobs pass by themselves: right before the migrate command, and before any traffic moves."""
