"""Tests of whole processes, and of pages in a real browser."""
