"""What Tidemark tells of itself: metrics and log. Never a secret, never a name that lives for one run."""
