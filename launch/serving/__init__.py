"""HTTP server of exported models: batching, protocols, limits, metrics and a web page."""
