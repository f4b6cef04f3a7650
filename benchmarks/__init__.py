"""Measurements beside the tests: parity with transformers, memory of an import."""
