"""Tests of `gateway/connections/`, a file for each module."""
