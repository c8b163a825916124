"""May a deployment begin: required checks, the application's own commands, whether everything outside answers. Changes nothing."""
