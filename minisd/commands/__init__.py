"""One command of the command line a file, each with a click command called `command`; they import only click before they run."""
