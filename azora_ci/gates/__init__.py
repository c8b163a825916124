"""May a deployment begin: required checks, the application's audit and build commands, whether everything outside can be reached."""
