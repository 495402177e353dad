"""What the search trains and decides: the gates on channels."""
