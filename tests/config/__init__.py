"""Tests of `gateway/config/`, a file for each module."""
