"""Segments of a sequence of bytes: gates, boundaries, pools and their losses, as plain functions of arrays."""
