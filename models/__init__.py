"""What is computed: one backbone, the parts that plug into its sockets, objectives, and decoding."""
