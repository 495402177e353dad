"""Images and labels: read once into memory, batched on the device."""
