"""What several commands parse or print alike. Nothing here is a command, and nothing here decides."""
