"""The device mesh, the sharding rules, and the settings of the host memory allocator."""
