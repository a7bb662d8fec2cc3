"""Tests of `gateway/client/sending/`, a file for each module."""
