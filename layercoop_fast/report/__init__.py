"""What the result costs and how it is shown."""
