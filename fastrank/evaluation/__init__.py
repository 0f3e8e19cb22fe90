"""Figures of whole data sets: solution rank, neural collapse, linear probes, out-of-distribution data."""
