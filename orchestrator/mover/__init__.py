"""The worker that copies blocks: what a Job's pod runs as `tidemark mover backup|restore|maintain|verify`.

It exists so that all bulk work happens outside the controller, near the volume. It holds one namespace's keys and one
store's credentials and no API token. It must start fast (nothing of the command line, of Kubernetes or of numpy is
imported), carry on where a killed one stopped, and never print a secret.
"""
