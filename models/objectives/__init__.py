"""What is learned: losses as pure functions of arrays and callables, one file per family of models."""
