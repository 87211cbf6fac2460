"""Checkpoint in, sealed bundle out. The torch world: runs on a workstation, rarely."""
