"""Tests of `gateway/client/`, a file for each module."""
