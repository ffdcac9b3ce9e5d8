"""The layers, backwards: each has the name, the file and the arguments of its forward form, and pulls its ops back in reverse order."""
