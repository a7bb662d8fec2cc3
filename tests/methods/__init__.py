"""Tests of `gateway/methods/`, a file for each module."""
