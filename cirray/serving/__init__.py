"""Floor 6: the Ray Serve application, its web page and client."""
