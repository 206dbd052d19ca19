"""How a canvas is filled: samplers that write tokens in any order, as pure functions of a callable and a key."""
