"""One reward a file."""
