"""Measurements, which are neither installed nor part of the tests."""
