"""Tests of `gateway/rpc/`, a file for each module."""
