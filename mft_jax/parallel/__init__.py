"""The device mesh, the sharding rules, runs on several hosts, the compilation cache, and the memory of the host."""
