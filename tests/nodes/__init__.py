"""Tests of `gateway/nodes/`, a file for each module."""
