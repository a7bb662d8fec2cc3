"""Tests of `gateway/telemetry/`, a file for each module."""
