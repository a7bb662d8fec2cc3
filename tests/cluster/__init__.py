"""Tests of `gateway/cluster/`, a file for each module."""
