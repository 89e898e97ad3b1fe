"""Who may have which name, and which keys are good."""
