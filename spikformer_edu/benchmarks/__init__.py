"""How fast, and in how much memory: this package beside its peers."""
