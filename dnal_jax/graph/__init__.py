"""What a network computes, layer by layer, and its restriction."""
