"""Tests of `gateway/events/`, a file for each module."""
