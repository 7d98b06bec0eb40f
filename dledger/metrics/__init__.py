"""What a node counts and measures, how Prometheus reads it, and whether the node is fit for use."""
