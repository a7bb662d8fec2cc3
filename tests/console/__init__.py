"""Tests of `gateway/console/`, a file for each module."""
