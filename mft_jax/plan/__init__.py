"""Plans a run for devices that need not be present (`mft plan`): whether it fits, how long it takes, what it costs.

The programs of a run are compiled from shapes alone, and what the compiler says of them is counted.
"""
