"""Tests of `gateway/terminal/`, a file for each module."""
