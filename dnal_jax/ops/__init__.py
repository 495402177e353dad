"""Array operations with a fast implementation for each platform."""
