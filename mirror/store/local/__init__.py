"""The disk: objects, their index, room for them."""
