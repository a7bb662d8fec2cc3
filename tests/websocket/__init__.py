"""Tests of `gateway/websocket/`, a file for each module."""
