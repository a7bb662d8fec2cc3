"""Tests of `gateway/auth/`, a file for each module."""
