"""What commands do: through the mirror that runs on a directory, or to the directory itself."""
