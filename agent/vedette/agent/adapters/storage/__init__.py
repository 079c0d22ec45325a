"""What outlives a power cut."""
