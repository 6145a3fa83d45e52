"""Images put together from what is stored."""
