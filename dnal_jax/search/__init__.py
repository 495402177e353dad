"""What the search decides: gates on channels, their values and their penalty."""
