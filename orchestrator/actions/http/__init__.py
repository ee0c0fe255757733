"""`http.request`."""
