"""Decision variables of the architecture search."""
