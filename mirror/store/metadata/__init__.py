"""Small durable records: tags, listings, and repository links."""
