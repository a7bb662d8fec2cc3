"""Calls from one gateway of a cluster to another."""
