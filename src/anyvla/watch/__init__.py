"""A page in the browser: what a policy sees, is told, predicts and does; live or from a file."""
