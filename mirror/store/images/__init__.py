"""Images, assembled from the stored manifests and blobs."""
