"""S3: a bucket, its objects, uploads in parts, and calls that are repeated. What is kept where in it is decided elsewhere."""
