"""One module a command, each with its flags and a ``main(arguments)``."""
