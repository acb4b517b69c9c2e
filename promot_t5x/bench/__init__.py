"""What the project's own choices cost and save on this machine: `promot-t5x bench`."""
