"""The one HTTP server: metrics, health, a status page. It reads; nothing can be changed through it."""
