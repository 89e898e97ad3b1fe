"""What is no longer to be trusted."""
