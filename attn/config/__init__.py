"""What a run is asked to do: the keys, their checks, the groups of names, the command line. Imports no torch."""
