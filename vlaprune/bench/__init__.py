"""Benchmarks: simulators behind the contract of `vlaprune.benchmark`."""
