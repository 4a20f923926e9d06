"""What a run keeps on disk, read and written through one store."""
