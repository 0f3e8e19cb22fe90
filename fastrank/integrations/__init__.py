"""Adapters that run `watch` inside other libraries' training loops, one file each; imported by name where wanted."""
