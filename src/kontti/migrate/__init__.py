"""What an existing containerd root holds, and bringing it over."""
