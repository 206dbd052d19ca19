"""Models that other libraries trained: their files into our parameters and back. docs/pretrained.md is the page."""
