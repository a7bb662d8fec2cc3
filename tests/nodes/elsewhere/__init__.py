"""Tests of `gateway/nodes/elsewhere/`, a file for each module."""
