"""The files of a run (chunks, checkpoints, training sets, results), read and written through one `Store`."""
