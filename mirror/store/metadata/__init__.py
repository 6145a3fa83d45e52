"""Small durable records: what a tag meant, what a listing said."""
