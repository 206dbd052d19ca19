"""How a sequence is produced: samplers as pure functions of a callable and a key, each with its exact law."""
