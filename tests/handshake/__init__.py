"""Tests of `gateway/handshake/`, a file for each module."""
