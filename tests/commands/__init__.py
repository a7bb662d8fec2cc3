"""Tests of `gateway/commands/`, a file for each module."""
