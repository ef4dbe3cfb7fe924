"""Streaming converters: what an input object holds, as lines of JSON. Pure; bytes in, bytes out."""
